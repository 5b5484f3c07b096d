//! The allow-list: which statements a client may send at all.
//!
//! It is checked twice. On the text, so that a refusal names the statement and the remedy; and on the plan, so that no
//! spelling that the first check has not thought of gets through.

use datafusion::common::DataFusionError;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{SetExpr, Statement as Ast};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::time_travel;
use crate::error::{Error, Kind, Result};

/// How deep expressions and subqueries may nest. BI tools fold to some dozens of levels.
const NESTING_MAX: usize = 128;
/// `1 + 1 + 1 …` is read in a loop but kept as a tree as deep as it is long, and walked by recursion: a stack that overflows
/// ends the whole process. Lists (`in (…)`, `values`) are flat and may be as long as they like.
const OPERATORS_MAX: usize = 2_000;

/// Parses exactly one statement and lets it through if it only reads.
///
/// # Errors
/// `Syntax`; `ReadOnly` for what would change something; `Forbidden` for what would reach files; `Unsupported` for the
/// rest.
pub(super) fn parse(sql: &str) -> Result<Statement> {
    // In whatever spelling, also those that the parser does not know.
    if sql.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("copy")) {
        return Err(refuse_copy());
    }
    let mut tokens =
        Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().map_err(|error| syntax(error.into()))?;
    check_length_of_chains(&tokens)?;
    time_travel::mark(&mut tokens)?;
    let mut statements = DFParserBuilder::new(tokens)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(NESTING_MAX)
        .build()?
        .parse_statements()?;
    let Some(statement) = statements.pop_front() else {
        return Err(Error::new(Kind::Syntax, "syntax error: the statement is empty"));
    };
    if !statements.is_empty() {
        return Err(Error::new(
            Kind::Syntax,
            "syntax error: more than one statement where one is expected; send them one by one",
        ));
    }
    check_statement(&statement)?;
    Ok(statement)
}

fn syntax(error: ParserError) -> Error {
    DataFusionError::from(error).into()
}

fn check_length_of_chains(tokens: &[TokenWithSpan]) -> Result<()> {
    let operators = tokens.iter().filter(|token| is_operator(&token.token)).count();
    if operators > OPERATORS_MAX {
        let message = format!(
            "the statement has {operators} operators; at most {OPERATORS_MAX} are accepted: a long list of values goes into in (…)"
        );
        return Err(Error::new(Kind::OutOfResources, message));
    }
    Ok(())
}

/// Whether a token can make a tree one level deeper without a bracket, which the parser counts by itself.
fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::IN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::DIV
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::MINUS
                | Keyword::JOIN
        ),
        Token::Whitespace(_)
        | Token::Comma
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::LBrace
        | Token::RBrace
        | Token::SemiColon
        | Token::Placeholder(_)
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::DollarQuotedString(_)
        | Token::NationalStringLiteral(_)
        | Token::EscapedStringLiteral(_)
        | Token::UnicodeStringLiteral(_)
        | Token::HexStringLiteral(_)
        | Token::EOF => false,
        // What is left are signs.
        _ => true,
    }
}

fn check_statement(statement: &Statement) -> Result<()> {
    match statement {
        Statement::Statement(ast) => check_ast(ast),
        Statement::Explain(explain) => check_statement(&explain.statement),
        Statement::CreateExternalTable(_) => Err(Error::new(
            Kind::Forbidden,
            "create external table is refused: sql may not reach files; ingest or a model brings data into the lake",
        )),
        Statement::CopyTo(_) => Err(refuse_copy()),
        Statement::Reset(_) => Err(refuse_session("reset")),
    }
}

fn check_ast(ast: &Ast) -> Result<()> {
    match ast {
        Ast::Query(query) => check_query(&query.body),
        Ast::Explain { statement, .. } => check_ast(statement),
        Ast::ExplainTable { .. }
        | Ast::ShowTables { .. }
        | Ast::ShowColumns { .. }
        | Ast::ShowFunctions { .. }
        | Ast::ShowVariable { .. } => Ok(()),
        Ast::Copy { .. } => Err(refuse_copy()),
        Ast::Set(_) | Ast::Discard { .. } | Ast::Reset(_) | Ast::Use(_) => Err(refuse_session(&verb(ast))),
        Ast::StartTransaction { .. }
        | Ast::Commit { .. }
        | Ast::Rollback { .. }
        | Ast::Savepoint { .. }
        | Ast::ReleaseSavepoint { .. }
        | Ast::Prepare { .. }
        | Ast::Execute { .. }
        | Ast::Deallocate { .. }
        | Ast::Declare { .. }
        | Ast::Fetch { .. }
        | Ast::Close { .. }
        | Ast::LISTEN { .. }
        | Ast::UNLISTEN { .. }
        | Ast::NOTIFY { .. }
        | Ast::ShowSchemas { .. }
        | Ast::ShowDatabases { .. }
        | Ast::ShowCatalogs { .. } => {
            Err(Error::new(Kind::Unsupported, format!("{} is not supported here; use a query", verb(ast))))
        }
        _ => Err(refuse_change(&verb(ast))),
    }
}

/// `SELECT … INTO` and data-changing bodies hide inside a query.
fn check_query(body: &SetExpr) -> Result<()> {
    match body {
        SetExpr::Select(select) if select.into.is_some() => Err(refuse_change("select into")),
        SetExpr::Select(_) | SetExpr::Values(_) | SetExpr::Table(_) => Ok(()),
        SetExpr::Query(query) => check_query(&query.body),
        SetExpr::SetOperation { left, right, .. } => {
            check_query(left)?;
            check_query(right)
        }
        SetExpr::Insert(ast) | SetExpr::Update(ast) | SetExpr::Delete(ast) | SetExpr::Merge(ast) => {
            Err(refuse_change(&verb(ast)))
        }
    }
}

/// The first word or two of a statement, as a name for it.
fn verb(ast: &Ast) -> String {
    let text = ast.to_string().to_lowercase();
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or("this statement").to_owned();
    match first.as_str() {
        "create" | "drop" | "alter" => match words.next() {
            Some(second) => format!("{first} {second}"),
            None => first,
        },
        _ => first,
    }
}

fn refuse_change(verb: &str) -> Error {
    Error::new(
        Kind::ReadOnly,
        format!("{verb} is refused: every door of the lake is read-only; tables change by ingest and by models"),
    )
}

fn refuse_copy() -> Error {
    Error::new(Kind::Forbidden, "copy is refused: sql may not reach files; select the rows instead")
}

fn refuse_session(verb: &str) -> Error {
    Error::new(
        Kind::Unsupported,
        format!("{verb} is not a statement of this door; change the settings of the session instead"),
    )
}

/// The same rule on the plan.
pub(super) fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let mut refusal = None;
    plan.apply_with_subqueries(|node| {
        let verb = match node {
            LogicalPlan::Ddl(ddl) => ddl.name().to_lowercase(),
            LogicalPlan::Dml(dml) => dml.op.to_string().to_lowercase(),
            LogicalPlan::Copy(_) => "copy".to_owned(),
            LogicalPlan::Statement(statement) => statement.name().to_lowercase(),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        refusal = Some(refuse_change(&verb));
        Ok(TreeNodeRecursion::Stop)
    })?;
    refusal.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(sql: &str) -> &'static str {
        parse(sql).map_or_else(|error| error.kind().sqlstate(), |_| "allowed")
    }

    #[test]
    fn what_would_be_too_deep_to_walk_is_refused_and_lists_are_not() {
        let sum = |terms: usize| format!("select {}", vec!["1"; terms].join(" + "));
        assert_eq!(refusal(&sum(OPERATORS_MAX + 1)), "allowed");
        for terms in [OPERATORS_MAX + 2, 400_000] {
            assert_eq!(refusal(&sum(terms)), "53200", "{terms}");
        }
        let union = vec!["select 1"; 100_000].join(" union all ");
        assert_eq!(refusal(&union), "53200");
        let list = format!("select 1 in ({})", vec!["'-'"; 100_000].join(", "));
        assert_eq!(refusal(&list), "allowed");
    }

    #[test]
    fn only_reading_statements_pass() {
        let cases = [
            ("select 1", "allowed"),
            ("with a as (select 1 x) select * from a", "allowed"),
            ("values (1), (2)", "allowed"),
            ("(select 1) union all (select 2)", "allowed"),
            ("explain select 1", "allowed"),
            ("explain analyze select 1", "allowed"),
            ("show tables", "allowed"),
            ("describe gold.top_songs", "allowed"),
            ("insert into t values (1)", "25006"),
            ("update t set a = 1", "25006"),
            ("delete from t", "25006"),
            ("create table t (a int)", "25006"),
            ("create table t as select 1", "25006"),
            ("create view v as select 1", "25006"),
            ("drop table t", "25006"),
            ("alter table t add column a int", "25006"),
            ("truncate table t", "25006"),
            ("explain insert into t values (1)", "25006"),
            ("select 1 into t", "25006"),
            ("create external table t stored as csv location '/etc/passwd'", "42501"),
            ("copy (select 1) to '/tmp/x.csv'", "42501"),
            ("copy t to '/tmp/x.parquet' stored as parquet", "42501"),
            ("copy t from '/etc/passwd' with (format csv)", "42501"),
            ("set datafusion.execution.batch_size = 1", "0A000"),
            ("create function f() returns int return 1", "25006"),
            ("grant select on t to u", "25006"),
            ("select 1; select 2", "42601"),
            ("", "42601"),
            ("selec 1", "42601"),
        ];
        for (sql, expected) in cases {
            assert_eq!(refusal(sql), expected, "{sql}");
        }
    }
}
