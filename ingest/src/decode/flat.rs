//! The short way through the JSON that most producers write: one object of the topic's fields, strings without escapes, no
//! white space but single blanks. It takes a quarter of the instructions that a JSON reader takes.
//!
//! **Invariant:** it reads a text just as the JSON reader would, or not at all. What it is not sure of it leaves to that.

use std::borrow::Cow;

use crate::topic::{FieldKind, FieldSpec};

/// A field that may hold a string: its place among all fields, and its name in quotation marks.
#[derive(Debug)]
struct Name {
    field: usize,
    quoted: String,
}

/// Reads flat objects of these fields.
#[derive(Debug)]
pub(super) struct FlatObjects {
    names: Vec<Name>,
}

impl FlatObjects {
    pub(super) fn new(fields: &[FieldSpec]) -> Self {
        let takes_strings = |field: &FieldSpec| matches!(field.kind, FieldKind::String | FieldKind::Any);
        let named = fields.iter().enumerate().filter(|(_, field)| takes_strings(field) && is_plain(&field.name));
        let name = |(place, field): (usize, &FieldSpec)| Name { field: place, quoted: format!("\"{}\"", field.name) };
        Self { names: named.map(name).collect() }
    }

    /// Reads `text` into `values`, or says no; then they hold anything.
    pub(super) fn read<'a>(&self, text: &'a str, values: &mut [Option<Cow<'a, str>>]) -> bool {
        is_plain_but_for_quotes(text) && self.read_members(text, values).is_some()
    }

    fn read_members<'a>(&self, text: &'a str, values: &mut [Option<Cow<'a, str>>]) -> Option<()> {
        let mut rest = text.strip_prefix('{')?;
        let mut likely = 0;
        loop {
            let (place, after) = self.take_name(rest, likely)?;
            // Producers write the fields in one order: the next name is most likely the next field's.
            likely = place + 1;
            let value = skip_blank(after.strip_prefix(':')?);
            let (value, after) = match value.strip_prefix('"') {
                Some(content) => {
                    let end = memchr::memchr(b'"', content.as_bytes())?;
                    (Some(Cow::Borrowed(&content[..end])), &content[end + 1..])
                }
                None => (None, value.strip_prefix("null")?),
            };
            // Of two values the last counts.
            values[self.names[place].field] = value;
            match after.strip_prefix(',') {
                Some(next) => rest = skip_blank(next),
                None => return (after == "}").then_some(()),
            }
        }
    }

    /// Which of the names `text` begins with, and what comes after it.
    fn take_name<'a>(&self, text: &'a str, likely: usize) -> Option<(usize, &'a str)> {
        let after = |place: usize| {
            let name: &Name = self.names.get(place)?;
            Some((place, text.strip_prefix(name.quoted.as_str())?))
        };
        after(likely).or_else(|| (0..self.names.len()).find_map(after))
    }
}

fn skip_blank(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

/// Whether a string of JSON would hold this text as it is.
fn is_plain(text: &str) -> bool {
    is_plain_but_for_quotes(text) && !text.contains('"')
}

/// Neither escapes nor what has to be escaped. Looks at all bytes, whatever the first ones are: so the compiler can look at
/// many of them at once.
fn is_plain_but_for_quotes(text: &str) -> bool {
    !text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Vec<FieldSpec> {
        let any = FieldSpec { kind: FieldKind::Any, ..FieldSpec::string("any") };
        let number = FieldSpec { kind: FieldKind::Number, ..FieldSpec::string("n") };
        vec![FieldSpec::string("a"), number, FieldSpec::string("naïve"), any, FieldSpec::string("q\"")]
    }

    fn read(text: &str) -> Option<Vec<Option<String>>> {
        let fields = fields();
        let mut values: Vec<Option<Cow<'_, str>>> = fields.iter().map(|_| None).collect();
        let is_read = FlatObjects::new(&fields).read(text, &mut values);
        is_read.then(|| values.into_iter().map(|value| value.map(Cow::into_owned)).collect())
    }

    fn filled<const N: usize>(values: [(usize, &str); N]) -> Option<Vec<Option<String>>> {
        let mut all = vec![None; fields().len()];
        values.into_iter().for_each(|(place, value)| all[place] = Some(value.to_owned()));
        Some(all)
    }

    #[test]
    fn flat_objects_of_strings_are_read() {
        assert_eq!(read(r#"{"a":"1","naïve":"zwölf","any":"x"}"#), filled([(0, "1"), (2, "zwölf"), (3, "x")]));
        assert_eq!(read(r#"{"any": "x", "a": ""}"#), filled([(3, "x"), (0, "")]));
        assert_eq!(read(r#"{"a":"1","a":null,"any":null}"#), filled([]));
        assert_eq!(read(r#"{"a":null,"a":"2"}"#), filled([(0, "2")]));
        assert_eq!(read(r#"{"a":"{\u0022"}"#), None);
    }

    #[test]
    fn what_is_not_certain_is_left_to_the_json_reader() {
        for text in [
            "",
            "{",
            "{}",
            "[]",
            "null",
            " {\"a\":\"1\"}",
            r#"{"a":"1"} "#,
            r#"{"a":"1"}}"#,
            r#"{"a":"1",}"#,
            r#"{"a":"1" }"#,
            r#"{"a" :"1"}"#,
            r#"{"a":  "1"}"#,
            r#"{"a":"1}"#,
            r#"{"a":1}"#,
            r#"{"a":true}"#,
            r#"{"a":nullx}"#,
            r#"{"n":"1"}"#,
            r#"{"b":"1"}"#,
            r#"{"a":"\n"}"#,
            "{\"a\":\"\n\"}",
            "{\"a\":\"\u{1f}\"}",
            r#"{"q\"":"1"}"#,
            r#"{"q"":"1"}"#,
            r#"{"any":{}}"#,
            r#"{"any":[1]}"#,
            r#"{"a":"1""any":"2"}"#,
            r#"{"aa":"1"}"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
