//! JSON, one object a message or one a line, read straight into columns: no tree of values is built, and text is copied once.
//!
//! Objects of plain strings go a shorter way (`flat`), with the same result.
//!
//! The order of blame is fixed, so that a message has one reason whatever reads it: not UTF-8, not JSON, not an object,
//! wrong type, too deep. Of a name that stands in the object twice, the last value counts, as in most JSON readers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::flat::FlatObjects;
use super::landing::WHOLE;
use super::{Decoder, Landing, Message, Messages, Poison, Reason, Row};
use crate::Result;
use crate::topic::{FieldKind, FieldSpec};

/// Text that goes into a column as JSON is nested at most so deep: serde_json, as most JSON readers, does not go to level 128.
const DEPTH_MAX: usize = 127;

/// An error quotes so many bytes of an unknown field's name at most: the name may be all of the payload.
const QUOTED_BYTES_MAX: usize = 100;

/// Each row repeats its message's key and headers. All together may have so many bytes; with a large key and lines of two
/// bytes, one message would fill the disk.
const REPEATED_BYTES_MAX: usize = 64 << 20;

/// One JSON object a message. By the names and kinds of a topic's fields.
#[derive(Debug)]
pub struct JsonDecoder {
    objects: Objects,
}

impl JsonDecoder {
    /// A decoder for these fields.
    pub fn new(fields: &[FieldSpec]) -> Self {
        Self { objects: Objects::new(fields) }
    }
}

impl Decoder for JsonDecoder {
    fn decode(&self, messages: &Messages<'_>, landing: &mut Landing<'_>) -> Result<()> {
        let mut row = self.objects.row();
        for message in messages.iter() {
            self.objects.land(&message, WHOLE, &mut row, landing)?;
        }
        Ok(())
    }
}

/// One JSON object a line (NDJSON, JSON Lines): each line is a row or a letter of its own, numbered from 0. Lines of nothing
/// but white space do not count; a message without any other is a letter itself.
#[derive(Debug)]
pub struct NdjsonDecoder {
    objects: Objects,
}

impl NdjsonDecoder {
    /// A decoder for these fields.
    pub fn new(fields: &[FieldSpec]) -> Self {
        Self { objects: Objects::new(fields) }
    }
}

impl Decoder for NdjsonDecoder {
    fn decode(&self, messages: &Messages<'_>, landing: &mut Landing<'_>) -> Result<()> {
        let mut row = self.objects.row();
        for message in messages.iter() {
            if let Err(poison) = check_lines(&message) {
                landing.letter(&message, WHOLE, &poison)?;
                continue;
            }
            for (index, line) in (0..).zip(lines(message.payload())) {
                self.objects.land(&message.part(line), index, &mut row, landing)?;
            }
        }
        Ok(())
    }
}

/// The lines that count, without what ends them.
fn lines(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = payload.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.trim_ascii().is_empty())
}

/// What makes all of a message a letter.
fn check_lines(message: &Message<'_>) -> Result<(), Poison> {
    if lines(message.payload()).next().is_none() {
        return Err(Poison::new(Reason::Empty, "the payload has no line with anything on it"));
    }
    let repeated = message.repeated_bytes();
    // Few messages need their lines counted: a line takes three bytes at least.
    if repeated.saturating_mul(message.payload().len() / 3) <= REPEATED_BYTES_MAX {
        return Ok(());
    }
    let rows = lines(message.payload()).count();
    if repeated.saturating_mul(rows) <= REPEATED_BYTES_MAX {
        return Ok(());
    }
    let error = format!(
        "the payload has {rows} lines, and each would repeat {repeated} bytes of key and headers: together the limit is \
         {REPEATED_BYTES_MAX}"
    );
    Err(Poison::new(Reason::TooLarge, error))
}

/// Reads JSON objects.
#[derive(Debug)]
struct Objects {
    fields: Vec<FieldSpec>,
    flat: FlatObjects,
}

impl Objects {
    fn new(fields: &[FieldSpec]) -> Self {
        Self { fields: fields.to_vec(), flat: FlatObjects::new(fields) }
    }

    fn row<'a>(&self) -> Row<'a> {
        Row::of(self.fields.len())
    }

    fn land<'a>(&self, message: &Message<'a>, index: i32, row: &mut Row<'a>, landing: &mut Landing<'_>) -> Result<()> {
        row.clear();
        match self.read(message.payload(), row) {
            Ok(()) => landing.row(message, index, row),
            Err(poison) => landing.letter(message, index, &poison),
        }
    }

    /// Reads one object into `row`, which is empty. What it leaves there on an error is thrown away.
    fn read<'a>(&self, payload: &'a [u8], row: &mut Row<'a>) -> Result<(), Poison> {
        let text = std::str::from_utf8(payload)
            .map_err(|error| Poison::new(Reason::NotUtf8, format!("byte {} is not UTF-8", error.valid_up_to())))?;
        if self.flat.read(text, &mut row.values) {
            return Ok(());
        }
        row.clear();
        self.read_any(text, row)
    }

    fn read_any<'a>(&self, text: &'a str, row: &mut Row<'a>) -> Result<(), Poison> {
        let mut fault = None;
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_any(MessageVisitor { fields: &self.fields, row, fault: &mut fault })
            .and_then(|()| json.end())
            .map_err(|error| Poison::new(Reason::NotJson, error.to_string()))?;
        fault.map_or(Ok(()), Err)
    }
}

/// Reads a whole payload. Goes on to its end after a fault, since what is not JSON in the end is not JSON first of all.
struct MessageVisitor<'r, 'a> {
    fields: &'r [FieldSpec],
    row: &'r mut Row<'a>,
    fault: &'r mut Option<Poison>,
}

impl MessageVisitor<'_, '_> {
    fn not_an_object(self, found: &str) {
        *self.fault = Some(Poison::new(Reason::NotObject, format!("the payload is {found}, not an object")));
    }
}

impl<'a> Visitor<'a> for MessageVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut unknown: Vec<(Cow<'a, str>, &'a RawValue)> = Vec::new();
        // Fields whose last value so far is none of theirs, and what stands there.
        let mut wrong: Vec<(usize, &'static str)> = Vec::new();
        let mut likely = 0;
        while let Some(name) = map.next_key_seed(NameSeed { fields: self.fields, likely })? {
            let index = match name {
                Name::Field(index) => index,
                Name::Unknown(name) => {
                    let value = map.next_value()?;
                    unknown.push((name, value));
                    continue;
                }
            };
            // Producers write the fields in one order: the next name is most likely the next field's.
            likely = index + 1;
            let field = &self.fields[index];
            let value = match field.kind {
                FieldKind::String => map.next_value_seed(TextSeed)?,
                kind => checked(kind, map.next_value()?),
            };
            wrong.retain(|&(earlier, _)| earlier != index);
            match value {
                Ok(value) => self.row.values[index] = value,
                Err(found) => wrong.push((index, found)),
            }
        }
        if let Some(&(index, found)) = wrong.first() {
            *self.fault = Some(wrong_type(&self.fields[index], found));
        }
        if !unknown.is_empty()
            && let Err(poison) = rescue(&unknown, &mut self.row.rescued)
        {
            self.fault.get_or_insert(poison);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.not_an_object("an array");
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.not_an_object("a string");
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.not_an_object("true or false");
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.not_an_object("a number");
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.not_an_object("a number");
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.not_an_object("a number");
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.not_an_object("null");
        Ok(())
    }
}

/// A name in the object: one of the topic's fields, or another.
enum Name<'a> {
    Field(usize),
    Unknown(Cow<'a, str>),
}

struct NameSeed<'r> {
    fields: &'r [FieldSpec],
    /// The field to compare with first.
    likely: usize,
}

impl NameSeed<'_> {
    fn find(&self, name: &str) -> Option<usize> {
        let is_named = |index: usize| self.fields.get(index).is_some_and(|field| field.name == name);
        if is_named(self.likely) {
            return Some(self.likely);
        }
        (0..self.fields.len()).find(|&index| is_named(index))
    }
}

impl<'a> DeserializeSeed<'a> for NameSeed<'_> {
    type Value = Name<'a>;

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<Name<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for NameSeed<'_> {
    type Value = Name<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_borrowed_str<E>(self, name: &'a str) -> Result<Name<'a>, E> {
        Ok(self.find(name).map_or(Name::Unknown(Cow::Borrowed(name)), Name::Field))
    }

    fn visit_str<E>(self, name: &str) -> Result<Name<'a>, E> {
        Ok(self.find(name).map_or_else(|| Name::Unknown(Cow::Owned(name.to_owned())), Name::Field))
    }
}

/// A field's value, or the name of what stands there instead.
type Found<'a> = Result<Option<Cow<'a, str>>, &'static str>;

/// Reads a value that has to be a string or null.
struct TextSeed;

impl<'a> DeserializeSeed<'a> for TextSeed {
    type Value = Found<'a>;

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<Found<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for TextSeed {
    type Value = Found<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Found<'a>, E> {
        Ok(Ok(Some(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found<'a>, E> {
        Ok(Ok(Some(Cow::Owned(text.to_owned()))))
    }

    fn visit_unit<E>(self) -> Result<Found<'a>, E> {
        Ok(Ok(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found<'a>, E> {
        Ok(Err("true or false"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found<'a>, E> {
        Ok(Err("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found<'a>, E> {
        Ok(Err("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found<'a>, E> {
        Ok(Err("a number"))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Found<'a>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err("an array"))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Found<'a>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Err("an object"))
    }
}

/// A value that is kept as it was written, if it is of the right kind.
fn checked(kind: FieldKind, raw: &RawValue) -> Found<'_> {
    let text = raw.get();
    let found = match text.as_bytes().first() {
        Some(b'n') => return Ok(None),
        Some(b'"') => "a string",
        Some(b't' | b'f') => "true or false",
        Some(b'[') => "an array",
        Some(b'{') => "an object",
        _ => "a number",
    };
    match (kind, found) {
        (FieldKind::Number, "a number") | (FieldKind::Boolean, "true or false") => Ok(Some(Cow::Borrowed(text))),
        (FieldKind::Any | FieldKind::String, "a string") => {
            serde_json::from_str(text).map(|text: String| Some(Cow::Owned(text))).map_err(|_| "a damaged string")
        }
        (FieldKind::Any, _) if depth(text) > DEPTH_MAX => Err("a value nested too deep"),
        (FieldKind::Any, _) => Ok(Some(Cow::Borrowed(text))),
        _ => Err(found),
    }
}

fn wrong_type(field: &FieldSpec, found: &str) -> Poison {
    let wanted = match field.kind {
        FieldKind::String => "a string",
        FieldKind::Number => "a number",
        FieldKind::Boolean => "true or false",
        FieldKind::Any => "another value",
    };
    Poison::new(Reason::WrongType, format!("field \"{}\" holds {found} where {wanted} is expected", field.name))
}

/// Writes the fields that the topic does not know as one JSON object. Of two with one name the last counts.
fn rescue(unknown: &[(Cow<'_, str>, &RawValue)], into: &mut String) -> Result<(), Poison> {
    let last: HashMap<&str, usize> =
        unknown.iter().enumerate().map(|(place, (name, _))| (name.as_ref(), place)).collect();
    for (place, (name, value)) in unknown.iter().enumerate() {
        if last[name.as_ref()] != place {
            continue;
        }
        if depth(value.get()) >= DEPTH_MAX {
            let quoted = &name[..name.floor_char_boundary(QUOTED_BYTES_MAX)];
            let error = format!("field \"{quoted}\" is nested more than {DEPTH_MAX} levels deep");
            return Err(Poison::new(Reason::TooDeep, error));
        }
        into.push(if into.is_empty() { '{' } else { ',' });
        into.push_str(&serde_json::Value::from(name.as_ref()).to_string());
        into.push(':');
        into.push_str(value.get());
    }
    into.push('}');
    Ok(())
}

/// How deep the arrays and objects of a JSON text are nested.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Decodes one payload by fields `a` (string), `n` (number), `b` (boolean) and `x` (any).
    fn check(payload: impl AsRef<[u8]>, expected: Expect) {
        let kinds = [("n", FieldKind::Number), ("b", FieldKind::Boolean), ("x", FieldKind::Any)];
        let mut fields = vec![FieldSpec::string("a")];
        fields.extend(kinds.map(|(name, kind)| FieldSpec { kind, ..FieldSpec::string(name) }));
        let mut row = Row::of(fields.len());
        let shown = match Objects::new(&fields).read(payload.as_ref(), &mut row) {
            Ok(()) => {
                let values = fields
                    .iter()
                    .zip(&row.values)
                    .filter_map(|(field, value)| Some(format!("{}={:?}", field.name, value.as_deref()?)));
                let rescued = (!row.rescued.is_empty()).then(|| format!("rescued {}", row.rescued));
                values.chain(rescued).collect::<Vec<_>>().join(" ")
            }
            Err(poison) => format!("{}: {}", poison.reason.code(), poison.error),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn fields_become_text_as_it_came() {
        check(r#"{"a":"one","n":1.50,"b":true,"x":[1, 2]}"#, expect![[r#"a="one" n="1.50" b="true" x="[1, 2]""#]]);
        check(r#" { "n" : -1E+400 , "a" : "é\u00e9\n\"" } "#, expect![[r#"a="éé\n\"" n="-1E+400""#]]);
        check(r#"{"x":"text","a":""}"#, expect![[r#"a="" x="text""#]]);
        check(r#"{"a":null,"n":null,"b":null,"x":null}"#, expect![""]);
        check("{}", expect![""]);
        check(r#"{"a":"nul \u0000 and 😀"}"#, expect![[r#"a="nul \0 and 😀""#]]);
    }

    #[test]
    fn what_the_topic_does_not_know_is_rescued() {
        check(
            r#"{"more":{"k":[1,"x"]},"a":"1","quo\"te":12345678901234567890123}"#,
            expect![[r#"a="1" rescued {"more":{"k":[1,"x"]},"quo\"te":12345678901234567890123}"#]],
        );
        check(r#"{"":null}"#, expect![[r#"rescued {"":null}"#]]);
    }

    #[test]
    fn of_two_values_the_last_counts() {
        check(r#"{"a":"1","z":1,"a":"2","z":2}"#, expect![[r#"a="2" rescued {"z":2}"#]]);
        check(r#"{"a":"1","\u0061":null}"#, expect![""]);
        check(r#"{"a":1,"a":"2"}"#, expect![[r#"a="2""#]]);
        check(
            r#"{"a":1,"a":"2","a":true}"#,
            expect![[r#"wrong_type: field "a" holds true or false where a string is expected"#]],
        );
    }

    #[test]
    fn what_is_not_json() {
        check("not json", expect!["not_json: expected ident at line 1 column 2"]);
        check(r#"{"a":"cut"#, expect!["not_json: EOF while parsing a string at line 1 column 9"]);
        check(r#"{"a":"1"} x"#, expect!["not_json: trailing characters at line 1 column 11"]);
        check(r#"{"a":1,}"#, expect!["not_json: trailing comma at line 1 column 8"]);
        check(r#"{"a":NaN}"#, expect!["not_json: expected value at line 1 column 6"]);
        check("  ", expect!["not_json: EOF while parsing a value at line 1 column 2"]);
        check("\u{feff}{}", expect!["not_json: expected value at line 1 column 1"]);
        check(r#"{"a":"\ud800"}"#, expect!["not_json: unexpected end of hex escape at line 1 column 13"]);
        check(
            "{\"a\":\"a\nb\"}",
            expect!["not_json: control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0"],
        );
        check(r#"[1,2"#, expect!["not_json: EOF while parsing a list at line 1 column 4"]);
    }

    #[test]
    fn what_is_not_text_or_not_an_object() {
        check(b"{\"a\":\"\xff\"}", expect!["not_utf8: byte 6 is not UTF-8"]);
        check("[{}]", expect!["not_object: the payload is an array, not an object"]);
        check("17", expect!["not_object: the payload is a number, not an object"]);
        check("null", expect!["not_object: the payload is null, not an object"]);
        check(r#""{}""#, expect!["not_object: the payload is a string, not an object"]);
    }

    #[test]
    fn what_is_of_the_wrong_type() {
        check(r#"{"a":5}"#, expect![[r#"wrong_type: field "a" holds a number where a string is expected"#]]);
        check(r#"{"a":{"k":[1]}}"#, expect![[r#"wrong_type: field "a" holds an object where a string is expected"#]]);
        check(r#"{"b":"true"}"#, expect![[r#"wrong_type: field "b" holds a string where true or false is expected"#]]);
        check(r#"{"n":"1","a":1}"#, expect![[r#"wrong_type: field "n" holds a string where a number is expected"#]]);
        check(r#"{"a":5"#, expect!["not_json: EOF while parsing an object at line 1 column 6"]);
    }

    #[test]
    fn deep_nesting_neither_ends_the_program_nor_reaches_the_table() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        check(
            format!(r#"{{"more":{}}}"#, deep(100_000)),
            expect![[r#"too_deep: field "more" is nested more than 127 levels deep"#]],
        );
        check(
            format!(r#"{{"a":{}}}"#, deep(100_000)),
            expect![[r#"wrong_type: field "a" holds an array where a string is expected"#]],
        );
        check(
            format!(r#"{{"x":{}}}"#, deep(128)),
            expect![[r#"wrong_type: field "x" holds a value nested too deep where another value is expected"#]],
        );
        // What gets into the table is read by serde_json, for one.
        for text in [format!(r#"{{"more":{}}}"#, deep(126)), format!(r#"{{"x":{}}}"#, deep(127))] {
            let fields = [FieldSpec { kind: FieldKind::Any, ..FieldSpec::string("x") }];
            let mut row = Row::of(1);
            Objects::new(&fields).read(text.as_bytes(), &mut row).expect("not too deep");
            let kept = row.values[0].take().map_or(row.rescued, Cow::into_owned);
            serde_json::from_str::<serde_json::Value>(&kept).expect("it can be read");
        }
        let name = "é".repeat(1000);
        let mut row = Row::of(0);
        let poison = Objects::new(&[]).read(format!(r#"{{"{name}":{}}}"#, deep(127)).as_bytes(), &mut row);
        assert!(poison.expect_err("too deep").error.len() < 200, "all of the name is quoted");
        check(deep(100_000), expect!["not_object: the payload is an array, not an object"]);
        assert_eq!(depth(r#"{"k":"[[[\"{{","l":[{}]}"#), 3);
    }

    /// Of each text all that differ from it in a byte: left out, doubled, or another.
    fn neighbours(text: &str) -> impl Iterator<Item = Vec<u8>> {
        const OTHERS: &[u8] = b"{}[]\":,\\ \n\x01\x1f\x7f\xc3\xa9anul0";
        let bytes = text.as_bytes().to_vec();
        (0..bytes.len()).flat_map(move |place| {
            let with = |part: &[u8]| [&bytes[..place], part, &bytes[place + 1..]].concat();
            let others = OTHERS.iter().map(|other| with(&[*other]));
            others.chain([with(&[]), with(&[bytes[place], bytes[place]])]).collect::<Vec<_>>()
        })
    }

    #[test]
    fn the_short_way_reads_what_the_long_way_reads() {
        let number = FieldSpec { kind: FieldKind::Number, ..FieldSpec::string("n") };
        let any = FieldSpec { kind: FieldKind::Any, ..FieldSpec::string("anul") };
        let objects = Objects::new(&[FieldSpec::string("a"), number, any]);
        let mut both = 0;
        for text in [
            r#"{"a":"one","anul":"é 1"}"#,
            r#"{"anul": null, "a": "{\\", "a": ""}"#,
            r#"{"a":"x","a":null,"n":null,"anul":"n"}"#,
        ] {
            for payload in neighbours(text) {
                let Ok(payload) = std::str::from_utf8(&payload) else { continue };
                let (mut short, mut long) = (objects.row(), objects.row());
                if objects.flat.read(payload, &mut short.values) {
                    assert_eq!(objects.read_any(payload, &mut long), Ok(()), "{payload}");
                    assert_eq!((short.values, ""), (long.values, long.rescued.as_str()), "{payload}");
                    both += 1;
                }
            }
        }
        assert!(both > 50, "only {both} went the short way");
    }
}
