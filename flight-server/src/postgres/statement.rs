//! From the text of a query message to commands: where one statement ends, and which are about the session and not about
//! data.
//!
//! Session statements never reach the SQL parser: drivers write them in more ways than it knows, and a connection pool
//! that cannot reset its connection is a broken one.

use crate::error::{Error, Kind, Result};

/// One statement, as this door sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    /// For the query path. The tag is what its completion is called.
    Query { sql: String, tag: &'static str },
    /// `SET name = value`.
    Set { name: String, value: String, scope: Scope },
    /// `RESET name`; `None`: `RESET ALL`.
    Reset(Option<String>),
    /// `SHOW name`; `None`: `SHOW ALL`.
    Show(Option<String>),
    /// `BEGIN`, `START TRANSACTION`.
    Begin { tag: &'static str },
    /// `COMMIT`, `END`.
    Commit,
    /// `ROLLBACK`, `ABORT`.
    Rollback,
    /// `SAVEPOINT name`.
    Savepoint(String),
    /// `RELEASE [SAVEPOINT] name`.
    Release(String),
    /// `ROLLBACK TO [SAVEPOINT] name`.
    RollbackTo(String),
    /// `DISCARD ALL`.
    DiscardAll,
    /// `DEALLOCATE name`; `None`: all.
    Deallocate(Option<String>),
    /// Accepted, and nothing to do: there are no notifications, cursors or temporary tables to drop.
    Nothing { tag: &'static str },
    /// Known, and not done here.
    Unsupported(&'static str),
}

/// How long a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Until it is set again.
    Session,
    /// Until the end of the transaction.
    Local,
}

/// The statements in a query message, without their semicolons; empty ones are left out.
pub(super) fn split(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut statements = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b';' {
            statements.push(&text[start..at]);
            start = at + 1;
            at += 1;
        } else {
            at = after_token(bytes, at);
        }
    }
    statements.push(&text[start..]);
    statements.into_iter().map(str::trim).filter(|statement| !is_blank(statement)).collect()
}

/// Whether there is nothing but space and comments.
fn is_blank(statement: &str) -> bool {
    words(statement).is_empty()
}

/// The place after what begins at `at`: a whole quoted text, name or comment, or one byte. What a quote opens and nothing
/// closes goes to the end.
fn after_token(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    match rest {
        [b'\'', ..] if is_escape_string(bytes, at) => after_quoted(bytes, at, b'\'', Backslash::Escapes),
        [b'\'', ..] => after_quoted(bytes, at, b'\'', Backslash::IsPlain),
        [b'"', ..] => after_quoted(bytes, at, b'"', Backslash::IsPlain),
        [b'-', b'-', ..] => rest.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| at + end),
        [b'/', b'*', ..] => after_comment(bytes, at),
        [b'$', ..] if at == 0 || !is_word_byte(bytes[at - 1]) => after_dollar_quoted(bytes, at),
        _ => at + 1,
    }
}

/// Whether the quote at `at` belongs to `E'…'`, where a backslash escapes.
fn is_escape_string(bytes: &[u8], at: usize) -> bool {
    at >= 1 && matches!(bytes[at - 1], b'e' | b'E') && (at < 2 || !is_word_byte(bytes[at - 2]))
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// What a backslash is between quotes.
#[derive(Clone, Copy, PartialEq)]
enum Backslash {
    Escapes,
    IsPlain,
}

fn after_quoted(bytes: &[u8], at: usize, quote: u8, backslash: Backslash) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        if backslash == Backslash::Escapes && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 2;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Comments nest in PostgreSQL.
fn after_comment(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0;
    let mut at = at;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `$$ … $$` and `$tag$ … $tag$`; a `$1` is none.
fn after_dollar_quoted(bytes: &[u8], at: usize) -> usize {
    let Some(length) = bytes[at + 1..].iter().position(|byte| *byte == b'$') else {
        return at + 1;
    };
    let tag = &bytes[at + 1..at + 1 + length];
    let is_tag = tag.iter().all(|byte| is_word_byte(*byte)) && !tag.first().is_some_and(u8::is_ascii_digit);
    if !is_tag {
        return at + 1;
    }
    let delimiter = &bytes[at..at + length + 2];
    let body = at + delimiter.len();
    bytes[body..]
        .windows(delimiter.len())
        .position(|window| window == delimiter)
        .map_or(bytes.len(), |end| body + end + delimiter.len())
}

/// A word of a session statement.
#[derive(Debug, Clone, PartialEq)]
enum Word {
    /// A bare word, as it was written.
    Bare(String),
    /// `'…'`
    Text(String),
    /// `"…"`
    Name(String),
    /// Any other character.
    Sign(char),
}

impl Word {
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Bare(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// Bare words lose their case, quoted ones keep it.
    fn as_name(&self) -> Option<String> {
        match self {
            Self::Bare(word) => Some(word.to_lowercase()),
            Self::Name(name) => Some(name.clone()),
            Self::Text(_) | Self::Sign(_) => None,
        }
    }
}

/// At most so many words tell what a session statement is.
const WORDS_MAX: usize = 64;

fn words(statement: &str) -> Vec<Word> {
    let bytes = statement.as_bytes();
    let mut words = Vec::new();
    let mut at = 0;
    while at < bytes.len() && words.len() < WORDS_MAX {
        let end = match bytes[at] {
            byte if is_word_byte(byte) => at + bytes[at..].iter().take_while(|byte| is_bare_byte(**byte)).count(),
            _ => after_token(bytes, at),
        };
        let part = &statement[at..end];
        match bytes[at] {
            b'\'' => words.push(Word::Text(unquote(part, "'"))),
            b'"' => words.push(Word::Name(unquote(part, "\""))),
            byte if byte.is_ascii_whitespace() => {}
            b'-' | b'/' if end > at + 1 => {}
            byte if is_word_byte(byte) => words.push(Word::Bare(part.to_owned())),
            byte => words.push(Word::Sign(char::from(byte))),
        }
        at = end;
    }
    words
}

/// `lakebeat.publication` and `2.5` are one word.
fn is_bare_byte(byte: u8) -> bool {
    is_word_byte(byte) || byte == b'.'
}

fn unquote(quoted: &str, quote: &str) -> String {
    let inner = quoted.strip_prefix(quote).unwrap_or(quoted);
    let inner = inner.strip_suffix(quote).unwrap_or(inner);
    inner.replace(&quote.repeat(2), quote)
}

/// What one statement is.
///
/// # Errors
/// `Syntax` for a session statement that is not complete.
pub(super) fn classify(sql: &str) -> Result<Command> {
    let words = words(sql);
    let Some(first) = words.first().and_then(|word| match word {
        Word::Bare(word) => Some(word.to_lowercase()),
        _ => None,
    }) else {
        return Ok(query(sql, "SELECT"));
    };
    let rest = &words[1..];
    let has = |keyword: &str| rest.first().is_some_and(|word| word.is(keyword));
    match first.as_str() {
        "set" => classify_set(rest),
        "reset" => match rest {
            [all] if all.is("all") => Ok(Command::Reset(None)),
            [] => Err(incomplete("reset")),
            _ => Ok(Command::Reset(Some(setting_name(rest)))),
        },
        "show" => Ok(classify_show(sql, rest)),
        "begin" => Ok(Command::Begin { tag: "BEGIN" }),
        "start" if has("transaction") => Ok(Command::Begin { tag: "START TRANSACTION" }),
        "commit" | "end" if !has("prepared") => Ok(Command::Commit),
        "rollback" if rest.iter().any(|word| word.is("to")) => {
            name_at_end("rollback to", rest).map(Command::RollbackTo)
        }
        "rollback" | "abort" if !has("prepared") => Ok(Command::Rollback),
        "savepoint" => name_at_end("savepoint", rest).map(Command::Savepoint),
        "release" => name_at_end("release", rest).map(Command::Release),
        "discard" => Ok(classify_discard(rest)),
        "deallocate" => match rest.last() {
            None => Err(incomplete("deallocate")),
            Some(last) if last.is("all") => Ok(Command::Deallocate(None)),
            Some(last) => Ok(Command::Deallocate(last.as_name())),
        },
        "close" => Ok(Command::Nothing { tag: if has("all") { "CLOSE CURSOR ALL" } else { "CLOSE CURSOR" } }),
        "unlisten" => Ok(Command::Nothing { tag: "UNLISTEN" }),
        "listen" | "notify" => Ok(Command::Unsupported("notifications are not supported; poll with a query")),
        "declare" | "fetch" | "move" => Ok(Command::Unsupported(
            "sql cursors are not supported; read the result in portions by the driver's fetch size",
        )),
        "prepare" | "execute" => {
            Ok(Command::Unsupported("sql prepare and execute are not supported; use the driver's prepared statements"))
        }
        "explain" => Ok(query(sql, "EXPLAIN")),
        _ => Ok(query(sql, "SELECT")),
    }
}

fn query(sql: &str, tag: &'static str) -> Command {
    Command::Query { sql: sql.to_owned(), tag }
}

fn incomplete(what: &str) -> Error {
    Error::new(Kind::Syntax, format!("syntax error: {what} is not complete"))
}

fn name_at_end(what: &str, rest: &[Word]) -> Result<String> {
    rest.last()
        .filter(|word| !word.is("to") && !word.is("savepoint"))
        .and_then(Word::as_name)
        .ok_or_else(|| incomplete(what))
}

fn classify_show(sql: &str, rest: &[Word]) -> Command {
    const LISTS: [&str; 4] = ["tables", "columns", "functions", "full"];
    match rest {
        [] => Command::Show(None),
        [only] if only.is("all") => Command::Show(None),
        [first, ..] if LISTS.iter().any(|list| first.is(list)) => query(sql, "SHOW"),
        _ => Command::Show(Some(setting_name(rest))),
    }
}

/// A setting's name, where it may be several words: `time zone`, `transaction isolation level`.
fn setting_name(words: &[Word]) -> String {
    let names: Vec<String> = words.iter().filter_map(Word::as_name).collect();
    names.join(" ")
}

fn classify_discard(rest: &[Word]) -> Command {
    match rest.first() {
        Some(word) if word.is("plans") => Command::Nothing { tag: "DISCARD PLANS" },
        Some(word) if word.is("sequences") => Command::Nothing { tag: "DISCARD SEQUENCES" },
        Some(word) if word.is("temp") || word.is("temporary") => Command::Nothing { tag: "DISCARD TEMP" },
        _ => Command::DiscardAll,
    }
}

fn classify_set(rest: &[Word]) -> Result<Command> {
    let (scope, rest) = match rest {
        [first, second, ..] if first.is("session") && second.is("characteristics") => {
            return Ok(transaction_mode(rest, "default_transaction_"));
        }
        [first, second, ..] if first.is("session") && second.is("authorization") => {
            return Ok(Command::Unsupported("another user cannot be taken on; connect as that user"));
        }
        [first, rest @ ..] if first.is("session") => (Scope::Session, rest),
        [first, rest @ ..] if first.is("local") => (Scope::Local, rest),
        rest => (Scope::Session, rest),
    };
    let set = |name: &str, value: String| Ok(Command::Set { name: name.to_owned(), value, scope });
    match rest {
        [] => Err(incomplete("set")),
        [first, ..] if first.is("transaction") => Ok(transaction_mode(rest, "transaction_")),
        [first, ..] if first.is("constraints") => Ok(Command::Nothing { tag: "SET CONSTRAINTS" }),
        [first, value] if first.is("role") && (value.is("none") || value.is("default")) => {
            Ok(Command::Nothing { tag: "SET" })
        }
        [first, ..] if first.is("role") => {
            Ok(Command::Unsupported("there are no roles to take on; connect as that user"))
        }
        [first, second, value @ ..] if first.is("time") && second.is("zone") => set("TimeZone", value_text(value)?),
        [first, value @ ..] if first.is("names") => set("client_encoding", value_text(value)?),
        [name, assign, value @ ..] if *assign == Word::Sign('=') || assign.is("to") => {
            let name = name.as_name().ok_or_else(|| incomplete("set"))?;
            set(&name, value_text(value)?)
        }
        _ => Err(incomplete("set")),
    }
}

/// `… ISOLATION LEVEL REPEATABLE READ, READ ONLY`: what is kept of it is the level; everything is read-only anyway.
fn transaction_mode(words: &[Word], prefix: &str) -> Command {
    let level: Vec<String> =
        words.iter().skip_while(|word| !word.is("level")).skip(1).map_while(Word::as_name).take(2).collect();
    let level = match level.first().map(String::as_str) {
        Some("serializable") => "serializable".to_owned(),
        Some(_) => level.join(" "),
        None => return Command::Nothing { tag: "SET" },
    };
    let scope = if prefix.starts_with("default") { Scope::Session } else { Scope::Local };
    Command::Set { name: format!("{prefix}isolation"), value: level, scope }
}

/// The value of a setting: one word or text, a signed number, or a list.
fn value_text(words: &[Word]) -> Result<String> {
    if words.is_empty() {
        return Err(incomplete("set"));
    }
    let mut text = String::new();
    for word in words {
        match word {
            Word::Bare(word) | Word::Text(word) => text.push_str(word),
            Word::Name(name) => {
                text.push('"');
                text.push_str(name);
                text.push('"');
            }
            Word::Sign(',') => text.push_str(", "),
            Word::Sign(sign) => text.push(*sign),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_semicolons_that_are_not_in_quotes_or_comments() {
        for (text, expected) in [
            ("select 1; select 2;", vec!["select 1", "select 2"]),
            ("select ';', \"a;b\" -- c;d\n; x", vec!["select ';', \"a;b\" -- c;d", "x"]),
            ("select 'it''s;'; y", vec!["select 'it''s;'", "y"]),
            (r"select E'\';'; y", vec![r"select E'\';'", "y"]),
            ("select $$;$$, $a$;$$;$a$; y", vec!["select $$;$$, $a$;$$;$a$", "y"]),
            ("select $1; select $2", vec!["select $1", "select $2"]),
            ("/* a; /* b; */ c; */ select 1", vec!["/* a; /* b; */ c; */ select 1"]),
            (" ; ;-- nothing", vec![]),
            ("select 'open; x", vec!["select 'open; x"]),
            ("select 'ä;'; y", vec!["select 'ä;'", "y"]),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    fn set(name: &str, value: &str, scope: Scope) -> Command {
        Command::Set { name: name.to_owned(), value: value.to_owned(), scope }
    }

    #[test]
    fn session_statements_in_the_spellings_that_drivers_use() {
        let show = |name: &str| Command::Show(Some(name.to_owned()));
        for (sql, expected) in [
            ("SET extra_float_digits = 3", set("extra_float_digits", "3", Scope::Session)),
            ("set session search_path to 'public'", set("search_path", "public", Scope::Session)),
            ("SET search_path TO gold, \"My Schema\"", set("search_path", "gold, \"My Schema\"", Scope::Session)),
            ("set local time zone 'Europe/Berlin'", set("TimeZone", "Europe/Berlin", Scope::Local)),
            ("SET TIME ZONE -3", set("TimeZone", "-3", Scope::Session)),
            ("set names 'utf8'", set("client_encoding", "utf8", Scope::Session)),
            ("SET DateStyle='ISO'", set("datestyle", "ISO", Scope::Session)),
            ("SET lakebeat.publication = 12", set("lakebeat.publication", "12", Scope::Session)),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
                set("default_transaction_isolation", "read committed", Scope::Session),
            ),
            (
                "set transaction isolation level serializable, read only",
                set("transaction_isolation", "serializable", Scope::Local),
            ),
            ("set session characteristics as transaction read only", Command::Nothing { tag: "SET" }),
            ("SHOW TRANSACTION ISOLATION LEVEL", show("transaction isolation level")),
            ("show time zone", show("time zone")),
            ("show server_version", show("server_version")),
            ("SHOW ALL", Command::Show(None)),
            ("show tables", query("show tables", "SHOW")),
            ("RESET ALL", Command::Reset(None)),
            ("reset search_path", Command::Reset(Some("search_path".to_owned()))),
            ("/* pool */ DISCARD ALL", Command::DiscardAll),
            ("BEGIN READ ONLY", Command::Begin { tag: "BEGIN" }),
            ("start transaction isolation level repeatable read", Command::Begin { tag: "START TRANSACTION" }),
            ("END", Command::Commit),
            ("ROLLBACK TO SAVEPOINT sp1", Command::RollbackTo("sp1".to_owned())),
            ("rollback to \"S P\"", Command::RollbackTo("S P".to_owned())),
            ("release savepoint sp1", Command::Release("sp1".to_owned())),
            ("DEALLOCATE \"_PLAN0x1\"", Command::Deallocate(Some("_PLAN0x1".to_owned()))),
            ("deallocate prepare all", Command::Deallocate(None)),
            ("CLOSE ALL", Command::Nothing { tag: "CLOSE CURSOR ALL" }),
            ("UNLISTEN *", Command::Nothing { tag: "UNLISTEN" }),
            ("select 1", query("select 1", "SELECT")),
            ("(select 1)", query("(select 1)", "SELECT")),
            ("explain select 1", query("explain select 1", "EXPLAIN")),
        ] {
            assert_eq!(classify(sql).expect(sql), expected, "{sql}");
        }
    }

    #[test]
    fn an_incomplete_session_statement_is_a_syntax_error() {
        for sql in ["set", "set x", "set x =", "reset", "savepoint", "rollback to savepoint", "deallocate"] {
            assert_eq!(classify(sql).expect_err(sql).kind(), Kind::Syntax, "{sql}");
        }
    }
}
