//! Time travel in SQL: `from gold.top_songs at version 12`, in the spellings of several engines.
//!
//! ```text
//! text   from gold.top_songs at version 12 as old
//! mark   from gold.top_songs ('␁version 12') as old      tokens; the parser takes it for a table function
//! place  from "gold at version 12".top_songs as old      the tree; past.rs has schemas of such names
//! ```
//!
//! The words are no keywords: only where nothing else can be meant, right behind a name and before a literal, do they begin such
//! a clause. Anywhere else `at`, `version`, `timestamp` and `publication` stay names.

use std::fmt;
use std::ops::{ControlFlow, Range};

use chrono::{DateTime, SecondsFormat, Utc};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, ObjectNamePart, TableFactor, TableFunctionArgs, Value,
    ValueWithSpan, VisitMut as _, VisitorMut,
};
use datafusion::sql::sqlparser::keywords::{RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_TABLE_ALIAS};
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use super::Settings;
use super::past::Past;
use crate::error::{Error, Kind, Result};

/// Each one is looked up in a table's log before the statement can be planned.
const CLAUSES_MAX: usize = 100;
/// What a text begins with that stands for a clause. Whoever sends it as an argument gets what it says.
const MARK: char = '\u{1}';

/// Which past of a table is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The table's version of that number.
    Version(u64),
    /// The newest version that was committed then or before.
    Timestamp(DateTime<Utc>),
    /// The version that the publication of that number names.
    Publication(u64),
}

impl Moment {
    /// Reads what [`fmt::Display`] writes. A time may have any form that a literal may have; without a zone it is one in `zone`.
    pub(super) fn read(text: &str, zone: &str) -> Result<Self> {
        let (kind, value) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "version" => number(text, value).map(Self::Version),
            "publication" => number(text, value).map(Self::Publication),
            "timestamp" => timestamp(value, zone).map(Self::Timestamp),
            _ => Err(Error::new(Kind::Syntax, format!("syntax error: \"{text}\" is no moment of a table"))),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(number) => write!(f, "version {number}"),
            Self::Timestamp(time) => write!(f, "timestamp {}", time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            Self::Publication(number) => write!(f, "publication {number}"),
        }
    }
}

fn number(text: &str, value: &str) -> Result<u64> {
    value.parse().map_err(|source| {
        Error::with_source(Kind::InvalidValue, format!("there is no {text}: numbers of it are never so large"), source)
    })
}

fn timestamp(value: &str, zone: &str) -> Result<DateTime<Utc>> {
    let unreadable = |source| {
        let message = format!("\"{value}\" is no time in the zone {zone}: write it as in '2026-11-24 10:00:00+00'");
        Error::with_source(Kind::InvalidValue, message, source)
    };
    let zone: Tz = zone.parse().map_err(unreadable)?;
    let time = string_to_datetime(&zone, value.trim()).map_err(unreadable)?;
    Ok(time.with_timezone(&Utc))
}

/// What a clause asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    Version,
    Timestamp,
    Publication,
}

/// How a clause can begin: our own words, those of Spark and Delta, and those of the SQL standard, of Trino and of Iceberg.
const BEGINNINGS: [(&[&str], Asks); 9] = [
    (&["at", "version"], Asks::Version),
    (&["at", "timestamp"], Asks::Timestamp),
    (&["at", "publication"], Asks::Publication),
    (&["version", "as", "of"], Asks::Version),
    (&["timestamp", "as", "of"], Asks::Timestamp),
    (&["for", "version", "as", "of"], Asks::Version),
    (&["for", "system_version", "as", "of"], Asks::Version),
    (&["for", "timestamp", "as", "of"], Asks::Timestamp),
    (&["for", "system_time", "as", "of"], Asks::Timestamp),
];

impl Asks {
    fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Timestamp => "timestamp",
            Self::Publication => "publication",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Version => "a version's number that is written out, such as 12",
            Self::Timestamp => "a time that is written out, such as '2026-11-24 10:00:00+00'",
            Self::Publication => "a publication's number that is written out, such as 7",
        }
    }
}

/// A clause in the text.
#[derive(Debug)]
struct Clause {
    /// Its tokens.
    range: Range<usize>,
    /// What it asks for, as [`Moment::read`] reads it.
    text: String,
}

/// Puts a mark in the place of each clause, at the same place in the text.
///
/// # Errors
/// `Syntax` for anything but a literal, `Unsupported` for a parameter, `OutOfResources` for too many clauses.
pub(super) fn mark(tokens: &mut Vec<TokenWithSpan>) -> Result<()> {
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    let clauses = clauses(tokens)?;
    if clauses.len() > CLAUSES_MAX {
        let message = format!(
            "the statement names {} moments of tables; at most {CLAUSES_MAX} are accepted: ask in several statements",
            clauses.len()
        );
        return Err(Error::new(Kind::OutOfResources, message));
    }
    for Clause { range, text } in clauses.into_iter().rev() {
        let span = Span::new(tokens[range.start].span.start, tokens[range.end - 1].span.end);
        let mark = [Token::LParen, Token::SingleQuotedString(format!("{MARK}{text}")), Token::RParen];
        tokens.splice(range, mark.map(|token| TokenWithSpan::new(token, span)));
    }
    Ok(())
}

fn clauses(tokens: &[TokenWithSpan]) -> Result<Vec<Clause>> {
    let mut found = Vec::new();
    let mut at = 1;
    while at < tokens.len() {
        let clause = if ends_name(&tokens[at - 1].token) { clause(tokens, at)? } else { None };
        match clause {
            Some(clause) => {
                at = clause.range.end;
                found.push(clause);
            }
            None => at += 1,
        }
    }
    Ok(found)
}

/// The clause that begins at `at`, if one does.
fn clause(tokens: &[TokenWithSpan], at: usize) -> Result<Option<Clause>> {
    let rest = &tokens[at..];
    if let [first, paren, word, arrow, ..] = rest
        && is_word(first, "at")
        && paren.token == Token::LParen
        && arrow.token == Token::RArrow
    {
        return clause_in_parentheses(tokens, at, word).map(Some);
    }
    let begins =
        |words: &[&str]| rest.len() >= words.len() && words.iter().zip(rest).all(|(word, token)| is_word(token, word));
    let Some((words, asks)) = BEGINNINGS.iter().find(|(words, _)| begins(words)) else { return Ok(None) };
    let behind = &rest[words.len()..];
    match literal(*asks, behind) {
        Some((value, length)) => {
            Ok(Some(Clause { range: at..at + words.len() + length, text: format!("{} {value}", asks.name()) }))
        }
        None if behind.first().is_none_or(|token| is_ordinary(&token.token)) => Ok(None),
        None => Err(refusal(&words.join(" "), *asks, &behind[0])),
    }
}

/// `AT (TIMESTAMP => '…')`, as Snowflake writes it.
fn clause_in_parentheses(tokens: &[TokenWithSpan], at: usize, word: &TokenWithSpan) -> Result<Clause> {
    let known = [Asks::Version, Asks::Timestamp, Asks::Publication];
    let Some(asks) = known.into_iter().find(|asks| is_word(word, asks.name())) else {
        let message = format!(
            "at ({} => …) is not supported: use at (timestamp => '…'), at (version => …) or at (publication => …)",
            word.token
        );
        return Err(Error::new(Kind::Unsupported, message));
    };
    // Behind `at`, the parenthesis, the word and the arrow.
    let begin = at + 4;
    let found = literal(asks, &tokens[begin..]);
    let end = begin + found.map_or(0, |(_, length)| length);
    let closing = tokens.get(end);
    match (found, closing) {
        (Some((value, _)), Some(closing)) if closing.token == Token::RParen => {
            Ok(Clause { range: at..end + 1, text: format!("{} {value}", asks.name()) })
        }
        _ => Err(refusal(&format!("at ({} =>", asks.name()), asks, closing.unwrap_or(word))),
    }
}

/// The literal that stands here, and how many tokens it takes.
fn literal(asks: Asks, tokens: &[TokenWithSpan]) -> Option<(&str, usize)> {
    if asks != Asks::Timestamp {
        let Token::Number(digits, false) = &tokens.first()?.token else { return None };
        return digits.bytes().all(|digit| digit.is_ascii_digit()).then_some((digits.as_str(), 1));
    }
    let typed =
        usize::from(tokens.first().is_some_and(|token| is_word(token, "timestamp") || is_word(token, "timestamptz")));
    let Token::SingleQuotedString(text) = &tokens.get(typed)?.token else { return None };
    let behind = &tokens[typed + 1..];
    let cast = match behind {
        [colons, kind, ..] if colons.token == Token::DoubleColon && is_time_type(&kind.token) => 2,
        _ => 0,
    };
    Some((text, typed + 1 + cast))
}

/// `timestamptz`, `timestamp_ntz` and their kin: what a time without a zone means is the session's to say.
fn is_time_type(token: &Token) -> bool {
    let Token::Word(word) = token else { return false };
    word.value.get(..9).is_some_and(|begin| begin.eq_ignore_ascii_case("timestamp"))
}

fn refusal(clause: &str, asks: Asks, found: &TokenWithSpan) -> Error {
    let place = found.span.start;
    if matches!(found.token, Token::Placeholder(_)) {
        let message = format!(
            "{clause} takes no parameter ({}{place}), for a statement is planned before its values are known: give {}",
            found.token,
            asks.example()
        );
        return Error::new(Kind::Unsupported, message);
    }
    let message = format!("syntax error: {clause} takes {}; found: {}{place}", asks.example(), found.token);
    Error::new(Kind::Syntax, message)
}

fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// Whether a table's name can end here.
fn ends_name(token: &Token) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_some())
        || matches!(token, Token::Word(_)) && !is_reserved(token)
}

/// Whether SQL can go on like this after words that happen to be those of a clause: `select at version from t`.
fn is_ordinary(token: &Token) -> bool {
    is_reserved(token) || matches!(token, Token::Comma | Token::RParen | Token::SemiColon | Token::Period | Token::EOF)
}

fn is_reserved(token: &Token) -> bool {
    let Token::Word(word) = token else { return false };
    word.quote_style.is_none()
        && (RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword) || RESERVED_FOR_COLUMN_ALIAS.contains(&word.keyword))
}

/// Has each table that is marked looked up in a schema of its past.
///
/// # Errors
/// `InvalidValue` for a time that is none, `Syntax` for a clause that is not behind a table's name.
pub(super) fn place(statement: &mut Statement, settings: &Settings) -> Result<()> {
    match statement {
        Statement::Statement(ast) => match ast.visit(&mut Placing { settings }) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(()),
        },
        Statement::Explain(explain) => place(&mut explain.statement, settings),
        _ => Ok(()),
    }
}

struct Placing<'a> {
    settings: &'a Settings,
}

impl VisitorMut for Placing<'_> {
    type Break = Error;

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<Error> {
        if let TableFactor::Table { name, args, .. } = table
            && let Some(text) = args.as_ref().and_then(marked_argument)
        {
            let placed = Moment::read(text, &self.settings.time_zone).and_then(|moment| self.place(name, moment));
            *args = None;
            return placed.map_or_else(ControlFlow::Break, ControlFlow::Continue);
        }
        ControlFlow::Continue(())
    }

    /// What is still marked is no table.
    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Error> {
        match marked(expression) {
            Some(text) => {
                let message = format!("syntax error: at {text} goes behind the name of a table, after from or join");
                ControlFlow::Break(Error::new(Kind::Syntax, message))
            }
            None => ControlFlow::Continue(()),
        }
    }
}

impl Placing<'_> {
    /// A name is that of a table of the lake, also where one of the statement's own (`with`) is the same: those have no past.
    fn place(&self, name: &mut ObjectName, moment: Moment) -> Result<()> {
        let schema = match name.0.as_slice() {
            [_] => None,
            [schema, _] | [_, schema, _] => schema.as_ident(),
            _ => return Err(Error::new(Kind::Syntax, format!("syntax error: {name} is no name of a table"))),
        };
        let schemas = match schema {
            Some(schema) if schema.quote_style.is_some() => vec![schema.value.clone()],
            Some(schema) => vec![schema.value.to_lowercase()],
            None => self.settings.search_path.clone(),
        };
        let past = Ident::with_quote('"', Past { schemas, moment }.to_string());
        let last = name.0.len() - 1;
        name.0.splice(last.saturating_sub(1)..last, [ObjectNamePart::Identifier(past)]);
        Ok(())
    }
}

fn marked_argument(arguments: &TableFunctionArgs) -> Option<&str> {
    match arguments.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(only))] => marked(only),
        _ => None,
    }
}

fn marked(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => text.strip_prefix(MARK),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::allow;

    fn placed(sql: &str) -> String {
        let mut settings = Settings::default();
        settings.set("timezone", "Europe/Berlin").expect("a zone");
        settings.set("search_path", "gold, silver").expect("a path");
        let placed = allow::parse(sql).and_then(|mut statement| {
            place(&mut statement, &settings)?;
            Ok(statement.to_string())
        });
        placed.unwrap_or_else(|error| format!("{} {}", error.kind().sqlstate(), error.message()))
    }

    #[test]
    fn every_spelling_becomes_a_schema_of_the_past() {
        let version = "\"gold at version 12\".t";
        let time = "\"gold at timestamp 2026-11-24T10:00:00Z\".t";
        for (clause, expected) in [
            ("at version 12", version),
            ("AT  Version /* the old one */ 12", version),
            ("version as of 12", version),
            ("for version as of 12", version),
            ("for system_version as of 12", version),
            ("at (version => 12)", version),
            ("at publication 7", "\"gold at publication 7\".t"),
            ("at(publication => 7)", "\"gold at publication 7\".t"),
            ("at timestamp '2026-11-24 10:00:00+00'", time),
            ("at timestamp '2026-11-24 11:00:00'", time),
            ("at timestamp '2026-11-24T10:00:00Z'", time),
            ("at timestamp timestamp '2026-11-24 05:00:00 America/New_York'", time),
            ("timestamp as of '2026-11-24 10:00:00+00'", time),
            ("for timestamp as of timestamp '2026-11-24 11:00:00'", time),
            ("for system_time as of '2026-11-24 11:00:00'", time),
            ("at (timestamp => '2026-11-24 10:00:00+00'::timestamp_tz)", time),
            ("at timestamp '2026-11-24'", "\"gold at timestamp 2026-11-23T23:00:00Z\".t"),
        ] {
            let sql = format!("select * from gold.t {clause}");
            assert_eq!(placed(&sql), format!("SELECT * FROM {expected}"), "{sql}");
        }
    }

    #[test]
    fn a_clause_may_stand_behind_any_name_of_a_table() {
        for (sql, expected) in [
            ("select * from t at version 1", "SELECT * FROM \"gold,silver at version 1\".t"),
            ("select * from Gold.T at version 1 as a", "SELECT * FROM \"gold at version 1\".T AS a"),
            ("select * from \"My\".\"T\" at version 1 a", "SELECT * FROM \"My at version 1\".\"T\" a"),
            ("select * from lake.gold.t at version 1", "SELECT * FROM lake.\"gold at version 1\".t"),
            (
                "select * from t at version 1 a join t at version 2 b using (x) where a.y > 1",
                "SELECT * FROM \"gold,silver at version 1\".t a JOIN \"gold,silver at version 2\".t b USING(x) WHERE a.y > 1",
            ),
            (
                "with c as (select * from gold.t at version 1) select (select max(x) from gold.t at version 2) from c",
                "WITH c AS (SELECT * FROM \"gold at version 1\".t) SELECT (SELECT max(x) FROM \"gold at version 2\".t) FROM c",
            ),
            ("explain select * from gold.t at version 1", "EXPLAIN SELECT * FROM \"gold at version 1\".t"),
            ("select * from at at version 1", "SELECT * FROM \"gold,silver at version 1\".at"),
        ] {
            assert_eq!(placed(sql), expected, "{sql}");
        }
    }

    #[test]
    fn the_words_stay_names_anywhere_else() {
        for sql in [
            "SELECT at, version, timestamp, publication FROM t",
            "SELECT at AS version FROM t",
            "SELECT t.version AS of FROM t",
            "SELECT version AS of FROM t",
            "SELECT x AT TIME ZONE 'UTC' FROM t at",
            "SELECT TIMESTAMP '2026-11-24 10:00:00'",
            "SELECT * FROM t at (version, timestamp)",
            "SELECT * FROM at version, t at",
            "SELECT * FROM version AS of (a, b)",
            "SELECT * FROM version AS of JOIN publication at ON of.x = at.x",
        ] {
            assert_eq!(placed(sql), sql);
        }
        assert_eq!(
            placed("select distinct at version, x timestamp from t"),
            "SELECT DISTINCT at AS version, x AS timestamp FROM t"
        );
    }

    #[test]
    fn what_is_no_literal_is_refused_at_its_place() {
        for (sql, expected) in [
            (
                "select * from t at timestamp now()",
                "42601 syntax error: at timestamp takes a time that is written out, such as '2026-11-24 10:00:00+00'; \
                 found: now at Line: 1, Column: 30",
            ),
            (
                "select * from t at version -1",
                "42601 syntax error: at version takes a version's number that is written out, such as 12; \
                 found: - at Line: 1, Column: 28",
            ),
            (
                "select *\nfrom t for version as of $1",
                "0A000 for version as of takes no parameter ($1 at Line: 2, Column: 26), for a statement is planned before its \
                 values are known: give a version's number that is written out, such as 12",
            ),
            (
                "select * from t at (timestamp => now())",
                "42601 syntax error: at (timestamp => takes a time that is written out, such as '2026-11-24 10:00:00+00'; \
                 found: now at Line: 1, Column: 34",
            ),
            (
                "select * from t at (offset => -60)",
                "0A000 at (offset => …) is not supported: use at (timestamp => '…'), at (version => …) or at (publication => …)",
            ),
            (
                "select * from t at timestamp 'yesterday'",
                "22P02 \"yesterday\" is no time in the zone Europe/Berlin: write it as in '2026-11-24 10:00:00+00'",
            ),
            (
                "select x at version 1 from t",
                "42601 syntax error: at version 1 goes behind the name of a table, after from or join",
            ),
            // Places of what comes behind are those in the text.
            (
                "select * from t at version 12 where a = )",
                "42601 syntax error: expected: an expression, found: ) at Line: 1, Column: 41",
            ),
        ] {
            assert_eq!(placed(sql), expected, "{sql}");
        }
        let many = format!("select * from t at version 1{}", ", t at version 1".repeat(CLAUSES_MAX));
        assert!(placed(&many).starts_with("53200 the statement names 101 moments"), "{}", placed(&many));
    }

    #[test]
    fn placeholders_keep_their_order() {
        let mut statement =
            allow::parse("select ? from t at version 1 where a = ? offset ? limit ?").expect("an allowed statement");
        crate::query::rewrite::rewrite(&mut statement).expect("one kind");
        place(&mut statement, &Settings::default()).expect("a table");
        let expected = "SELECT $1 FROM \"gold,silver,bronze at version 1\".t WHERE a = $2 LIMIT $4 OFFSET $3";
        assert_eq!(statement.to_string(), expected);
    }
}
