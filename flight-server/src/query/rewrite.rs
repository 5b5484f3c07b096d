//! Small changes to a parsed statement before it is planned: PostgreSQL's spellings of what the planner knows by another
//! name, and one form of placeholder.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    Ident, ObjectName, ObjectNamePart, Statement as Ast, Value, ValueWithSpan, visit_expressions,
    visit_expressions_mut,
};
use datafusion::sql::sqlparser::tokenizer::Location;

use super::absent;
use crate::error::{Error, Kind, Result};

/// Rewrites in place.
///
/// # Errors
/// `InvalidParameter` where `?` and `$1` are mixed.
pub(super) fn rewrite(statement: &mut Statement) -> Result<()> {
    match statement {
        Statement::Statement(ast) => {
            if let Ast::Query(query) = ast.as_mut() {
                absent::answer_query(query);
            }
            let placeholders = Placeholders::of(ast);
            let _ = visit_expressions_mut(ast.as_mut(), |expression| {
                rewrite_expression(expression, &placeholders);
                ControlFlow::<()>::Continue(())
            });
            placeholders.check()
        }
        Statement::Explain(explain) => rewrite(&mut explain.statement),
        _ => Ok(()),
    }
}

/// The places in the text where a `?` stands, in order: its place is its number. A tree is not walked in the order of
/// the text (`offset ? limit ?`).
struct Placeholders {
    question_marks: Vec<Location>,
    numbered: bool,
}

impl Placeholders {
    fn of(ast: &Ast) -> Self {
        let mut found = Self { question_marks: Vec::new(), numbered: false };
        let _ = visit_expressions(ast, |expression| {
            match expression {
                Expr::Value(ValueWithSpan { value: Value::Placeholder(name), span }) if name == "?" => {
                    found.question_marks.push(span.start);
                }
                Expr::Value(ValueWithSpan { value: Value::Placeholder(_), .. }) => found.numbered = true,
                _ => {}
            }
            ControlFlow::<()>::Continue(())
        });
        found.question_marks.sort_unstable();
        found
    }

    /// The number of the `?` at a place, from 1.
    fn number(&self, place: Location) -> usize {
        self.question_marks.partition_point(|other| *other <= place)
    }

    fn check(&self) -> Result<()> {
        if self.numbered && !self.question_marks.is_empty() {
            return Err(Error::new(Kind::InvalidParameter, "the statement mixes ? and $1 placeholders; use one kind"));
        }
        Ok(())
    }
}

fn rewrite_expression(expression: &mut Expr, placeholders: &Placeholders) {
    match expression {
        Expr::Value(ValueWithSpan { value: Value::Placeholder(name), span }) if name == "?" => {
            *name = format!("${}", placeholders.number(span.start));
        }
        // `pg_catalog.version()`: the planner knows functions by their bare name.
        Expr::Function(function) => strip_catalog(&mut function.name),
        // `a OPERATOR(pg_catalog.~) b`, as psql writes it.
        Expr::BinaryOp { op, .. } => {
            if let BinaryOperator::PGCustomBinaryOperator(path) = op
                && let Some(known) = path.last().and_then(|name| operator(name))
            {
                *op = known;
            }
        }
        // Types by PostgreSQL's names for them; the name of a type is a lookup and no cast.
        Expr::Cast { expr, data_type, .. } => match custom_name(data_type).as_deref() {
            Some("regtype") => *expression = call("format_type", vec![(**expr).clone(), null()]),
            Some("text" | "name" | "char") => *data_type = DataType::Text,
            Some("oid") => *data_type = DataType::BigInt(None),
            _ => {}
        },
        Expr::Subquery(query) if absent::is_empty(query) => *expression = null(),
        Expr::Exists { subquery, negated } if absent::is_empty(subquery) => {
            *expression = Expr::value(Value::Boolean(*negated));
        }
        // There is one collation, by code point; psql names it in each of its patterns.
        Expr::Collate { expr, .. } => *expression = (**expr).clone(),
        // PostgreSQL has these as words without parentheses.
        Expr::Identifier(name) if name.quote_style.is_none() && is_word_function(&name.value) => {
            *expression = call(&name.value.to_lowercase(), Vec::new());
        }
        _ => {}
    }
}

fn is_word_function(name: &str) -> bool {
    ["current_schema", "current_role"].iter().any(|word| name.eq_ignore_ascii_case(word))
}

/// The last part of a type's name that the parser does not know.
fn custom_name(data_type: &DataType) -> Option<String> {
    match data_type {
        DataType::Custom(name, modifiers) if modifiers.is_empty() => match name.0.as_slice() {
            [ObjectNamePart::Identifier(only)] => Some(only.value.to_lowercase()),
            [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(name)]
                if schema.value.eq_ignore_ascii_case("pg_catalog") =>
            {
                Some(name.value.to_lowercase())
            }
            _ => None,
        },
        _ => None,
    }
}

fn null() -> Expr {
    Expr::value(Value::Null)
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let arguments = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn strip_catalog(name: &mut ObjectName) {
    let in_catalog = matches!(
        name.0.as_slice(),
        [ObjectNamePart::Identifier(schema), _] if schema.value.eq_ignore_ascii_case("pg_catalog")
    );
    if in_catalog {
        name.0.remove(0);
    }
}

fn operator(name: &str) -> Option<BinaryOperator> {
    Some(match name {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::allow;

    fn rewritten(sql: &str) -> String {
        let mut statement = allow::parse(sql).expect("an allowed statement");
        match rewrite(&mut statement) {
            Ok(()) => statement.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn spellings_of_postgresql_become_those_of_the_planner() {
        let cases = [
            ("select ?, ?", "SELECT $1, $2"),
            ("select ? from t where a = ? offset ? limit ?", "SELECT $1 FROM t WHERE a = $2 LIMIT $4 OFFSET $3"),
            ("select $2, $1", "SELECT $2, $1"),
            ("select ?, $1", "the statement mixes ? and $1 placeholders; use one kind"),
            ("select pg_catalog.version()", "SELECT version()"),
            ("select current_schema", "SELECT current_schema()"),
            ("select oid::regtype::pg_catalog.text", "SELECT format_type(oid, NULL)::TEXT"),
            ("select \"current_schema\"", "SELECT \"current_schema\""),
            ("select a operator(pg_catalog.~) '^(x)$' collate pg_catalog.default from t", "SELECT a ~ '^(x)$' FROM t"),
        ];
        for (sql, expected) in cases {
            assert_eq!(rewritten(sql), expected, "{sql}");
        }
    }
}
