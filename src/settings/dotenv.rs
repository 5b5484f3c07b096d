//! `.env`, by the rules of python-dotenv, since that is what the replaced pipeline reads it with.
//!
//! The file is shared with other programs, so a line that is none to us is left alone. No message shows a value: it may be a
//! secret.

use std::collections::BTreeMap;

use crate::output::Fault;

/// The variables of the file. `${NAME}` and `${NAME:-default}` stand for what `environment` or an earlier line says;
/// nothing else does, so a password with a dollar in it stays what it is.
pub(super) fn parse(bytes: &[u8], environment: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Fault::usage(format!(".env is not UTF-8, from line {line} on: save it as UTF-8"))
    })?;
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut variables = BTreeMap::new();
    while !rest.is_empty() {
        let (assigned, after) = take_line(rest);
        if let Some((name, value)) = assigned {
            let value = expand(&value, |name| environment.get(name).or_else(|| variables.get(name)).cloned());
            variables.insert(name.to_owned(), value);
        }
        rest = after;
    }
    Ok(variables)
}

/// The assignment at the beginning of `text`, if there is one, and what comes after its line.
fn take_line(text: &str) -> (Option<(&str, String)>, &str) {
    let end = text.find('\n').unwrap_or(text.len());
    let after = text.get(end + 1..).unwrap_or_default();
    let Some(equals) = text[..end].find('=') else { return (None, after) };
    let name = text[..equals].trim();
    let name = name.strip_prefix("export ").unwrap_or(name).trim();
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '#' | '\'' | '"' | '{')) {
        return (None, after);
    }
    let value = text[equals + 1..].trim_start_matches([' ', '\t']);
    for quote in ['\'', '"'] {
        // What is quoted may go over several lines; a quote without an end is none.
        if let Some((value, behind)) = value.strip_prefix(quote).and_then(|value| take_quoted(value, quote)) {
            let after = behind.split_once('\n').map_or("", |(_, after)| after);
            return (Some((name, value)), after);
        }
    }
    let value = value.split('\n').next().unwrap_or_default();
    (Some((name, without_comment(value).to_owned())), after)
}

/// A value up to its closing quote, and what is behind that. Within double quotes `\n` and its kind are one character.
fn take_quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some((value, &text[at + 1..]));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        match (quote, chars.next()?.1) {
            (_, escaped @ ('\\' | '\'')) | ('"', escaped @ '"') => value.push(escaped),
            ('"', 'n') => value.push('\n'),
            ('"', 'r') => value.push('\r'),
            ('"', 't') => value.push('\t'),
            (_, other) => value.extend(['\\', other]),
        }
    }
    None
}

/// A comment begins with a `#` behind a blank: one within a word belongs to the word.
fn without_comment(value: &str) -> &str {
    let comment = value.match_indices('#').find(|(at, _)| value[..*at].ends_with(char::is_whitespace));
    comment.map_or(value, |(at, _)| &value[..at]).trim_end()
}

fn expand(value: &str, known: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some((before, inner)) = rest.split_once("${") {
        let Some((name, after)) = inner.split_once('}') else { break };
        let (name, default) = name.split_once(":-").unwrap_or((name, ""));
        expanded += before;
        expanded += &known(name).unwrap_or_else(|| default.to_owned());
        rest = after;
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let environment = BTreeMap::from([("HOME".to_owned(), "/home/me".to_owned())]);
        expected.assert_eq(&format!("{:?}", parse(text.as_bytes(), &environment).expect("UTF-8")));
    }

    #[test]
    fn what_is_written_in_such_files() {
        check(
            "A=1\nB = two words \n\n# C=3\nexport D='four'",
            expect![[r#"{"A": "1", "B": "two words", "D": "four"}"#]],
        );
        check(
            "A=x # why\nB=x#y\nC=\"a # b $c\" # why\nD=",
            expect![[r##"{"A": "x", "B": "x#y", "C": "a # b $c", "D": ""}"##]],
        );
        check("\u{feff}A=1\r\nB='2'\r\n", expect![[r#"{"A": "1", "B": "2"}"#]]);
        check(
            "A=a$b$$c\nB=back\\slash\nC='it\\'s'\nD=\"a\\tb\\q\"",
            expect![[r#"{"A": "a$b$$c", "B": "back\\slash", "C": "it's", "D": "a\tb\\q"}"#]],
        );
        check("A=${HOME}/x\nB=${A}-${NONE:-y}${NONE}${\n", expect![[r#"{"A": "/home/me/x", "B": "/home/me/x-y${"}"#]]);
        check("A='one\ntwo'\nB=2", expect![[r#"{"A": "one\ntwo", "B": "2"}"#]]);
    }

    #[test]
    fn what_is_none_of_ours_is_left_alone() {
        check(
            "no equals sign\nKEY WITH BLANKS=1\n=2\n{\"a\": \"b=c\"}\nA='no end\nB=2",
            expect![[r#"{"A": "'no end", "B": "2"}"#]],
        );
        let error = parse(b"A=1\nB=\xff\n", &BTreeMap::new()).expect_err("not UTF-8");
        expect![".env is not UTF-8, from line 2 on: save it as UTF-8"].assert_eq(&error.to_string());
    }
}
