//! The settings of a connection: those that change what a statement means, and those of PostgreSQL's that tools read or
//! write and that change nothing here. A setting is never accepted with a value that would not take effect.

use std::collections::BTreeMap;
use std::time::Duration;

use datafusion::arrow::array::timezone::Tz;

use crate::error::{Error, Kind, Result};

/// The PostgreSQL that the doors speak like: in the greeting, in `version()` and in `show server_version`.
pub(crate) const SERVER_VERSION: &str = "16.6";
const SERVER_VERSION_NUMBER: &str = "160006";

/// Where unqualified names are looked up, in this order, unless a client says otherwise.
const SEARCH_PATH: &str = "gold, silver, bronze";

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Takes {
    /// Any text; it is kept and shown, and nothing here depends on it.
    Text,
    /// `on` or `off`.
    Switch,
    /// A whole number in this range.
    Number(i64, i64),
    /// One of these, in any case; the first is the default form.
    OneOf(&'static [&'static str]),
    /// A duration: milliseconds, or a number with `ms`, `s`, `min` or `h`; 0 is none.
    Duration,
    /// A time zone.
    TimeZone,
    /// Schemas, comma-separated.
    SearchPath,
    /// ISO, with an order of the parts that only matters to other styles.
    DateStyle,
    /// The number of a publication, or empty for the newest.
    Publication,
    /// Nothing: it belongs to the server.
    Fixed,
}

struct Known {
    name: &'static str,
    default: &'static str,
    takes: Takes,
}

const fn known(name: &'static str, default: &'static str, takes: Takes) -> Known {
    Known { name, default, takes }
}

const ISOLATION: Takes = Takes::OneOf(&["read committed", "repeatable read", "serializable", "read uncommitted"]);

/// All settings, in the order of their names without regard to case.
const KNOWN: &[Known] = &[
    known("application_name", "", Takes::Text),
    known("bytea_output", "hex", Takes::OneOf(&["hex"])),
    known("check_function_bodies", "on", Takes::Switch),
    known("client_encoding", "UTF8", Takes::OneOf(&["UTF8", "UTF-8", "unicode"])),
    known(
        "client_min_messages",
        "notice",
        Takes::OneOf(&["notice", "warning", "error", "log", "info", "debug1", "debug2", "debug3", "debug4", "debug5"]),
    ),
    known("DateStyle", "ISO, MDY", Takes::DateStyle),
    known("default_transaction_deferrable", "off", Takes::Switch),
    known("default_transaction_isolation", "read committed", ISOLATION),
    known("default_transaction_read_only", "on", Takes::Switch),
    known("escape_string_warning", "on", Takes::Switch),
    known("extra_float_digits", "1", Takes::Number(-15, 3)),
    known("idle_in_transaction_session_timeout", "0", Takes::Text),
    known("in_hot_standby", "off", Takes::Fixed),
    known("integer_datetimes", "on", Takes::Fixed),
    known("IntervalStyle", "postgres", Takes::OneOf(&["postgres"])),
    known("is_superuser", "off", Takes::Fixed),
    known("jit", "off", Takes::Switch),
    known("lakebeat.publication", "", Takes::Publication),
    known("lc_collate", "C", Takes::Fixed),
    known("lc_ctype", "C.UTF-8", Takes::Fixed),
    known("lc_messages", "C", Takes::Text),
    known("lc_monetary", "C", Takes::Text),
    known("lc_numeric", "C", Takes::Text),
    known("lc_time", "C", Takes::Text),
    known("lock_timeout", "0", Takes::Text),
    known("max_identifier_length", "63", Takes::Fixed),
    known("max_index_keys", "32", Takes::Fixed),
    known("row_security", "on", Takes::Switch),
    known("search_path", SEARCH_PATH, Takes::SearchPath),
    known("server_encoding", "UTF8", Takes::Fixed),
    known("server_version", SERVER_VERSION, Takes::Fixed),
    known("server_version_num", SERVER_VERSION_NUMBER, Takes::Fixed),
    known("session_authorization", "", Takes::Fixed),
    known("standard_conforming_strings", "on", Takes::OneOf(&["on", "true", "1", "yes"])),
    known("statement_timeout", "0", Takes::Duration),
    known("synchronize_seqscans", "on", Takes::Switch),
    known("TimeZone", "UTC", Takes::TimeZone),
    known("transaction_deferrable", "off", Takes::Switch),
    known("transaction_isolation", "read committed", ISOLATION),
    known("transaction_read_only", "on", Takes::Switch),
];

/// What a client has set for its own statements.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The zone in which dates and times without one are read, and in which PostgreSQL's text shows instants.
    pub time_zone: String,
    /// Schemas in which unqualified names are looked up, in this order.
    pub search_path: Vec<String>,
    /// A time limit shorter than the server's; `None`: the server's.
    pub statement_timeout: Option<Duration>,
    /// The publication that all statements read; `None`: the newest.
    pub publication: Option<u64>,
    /// Who is connected, for `session_authorization` and `current_user`.
    pub(crate) user: String,
    /// What was set, by lower-case name, as it is shown.
    values: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            time_zone: "UTC".to_owned(),
            search_path: split_path(SEARCH_PATH),
            statement_timeout: None,
            publication: None,
            user: String::new(),
            values: BTreeMap::new(),
        }
    }
}

impl Settings {
    pub(super) fn of_user(user: &str) -> Self {
        Self { user: user.to_owned(), ..Self::default() }
    }

    /// Sets one, by PostgreSQL's rules: names without regard to case; a name with a dot that is not ours is anybody's.
    /// (Whether a publication exists is the connection's to check.)
    ///
    /// # Errors
    /// `UndefinedObject` for an unknown name, `InvalidSetting` for a value that would not take effect.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if value.trim().eq_ignore_ascii_case("default") {
            return self.reset(name);
        }
        let lower = canonical(name);
        let Some(setting) = find(&lower) else {
            if lower.contains('.') && !lower.starts_with("lakebeat.") {
                self.values.insert(lower, value.to_owned());
                return Ok(());
            }
            return Err(unknown(name));
        };
        let shown = self.take(setting, value.trim())?;
        self.values.insert(lower, shown);
        Ok(())
    }

    /// Checks a value, applies what takes effect, and gives the form that is shown.
    fn take(&mut self, setting: &Known, value: &str) -> Result<String> {
        let refused = |expected: &str| {
            Err(Error::new(Kind::InvalidSetting, format!("{} cannot be \"{value}\": {expected}", setting.name)))
        };
        match setting.takes {
            Takes::Text => Ok(value.to_owned()),
            Takes::Fixed => refused("it belongs to the server and cannot be changed"),
            Takes::Switch => match switch(value) {
                Some(shown) => Ok(shown.to_owned()),
                None => refused("it is on or off"),
            },
            Takes::Number(least, most) => match value.parse::<i64>() {
                Ok(number) if (least..=most).contains(&number) => Ok(number.to_string()),
                _ => refused(&format!("it is a number from {least} to {most}")),
            },
            Takes::OneOf(values) => {
                let known = values.iter().find(|known| known.eq_ignore_ascii_case(value));
                match known {
                    // Other spellings of one value are shown as that value.
                    Some(_) if setting.name != "client_min_messages" && setting.takes != ISOLATION => {
                        Ok(values[0].to_owned())
                    }
                    Some(known) => Ok((*known).to_owned()),
                    None => refused(&format!("here it is one of: {}", values.join(", "))),
                }
            }
            Takes::Duration => match duration(value) {
                Some(limit) => {
                    self.statement_timeout = (!limit.is_zero()).then_some(limit);
                    Ok(value.to_owned())
                }
                None => refused("it is milliseconds, or a number with ms, s, min or h"),
            },
            Takes::TimeZone => {
                self.time_zone = canonical_time_zone(value)?;
                Ok(self.time_zone.clone())
            }
            Takes::SearchPath => {
                self.search_path = split_path(value);
                Ok(value.to_owned())
            }
            Takes::DateStyle => {
                if value.to_ascii_lowercase().split(',').any(|part| part.trim() == "iso") {
                    Ok(value.to_owned())
                } else {
                    refused("here it is ISO")
                }
            }
            Takes::Publication => {
                self.publication = match value {
                    "" | "newest" => None,
                    number => match number.parse() {
                        Ok(id) => Some(id),
                        Err(_) => return refused("it is the number of a publication, or newest"),
                    },
                };
                Ok(self.publication.map_or_else(String::new, |id| id.to_string()))
            }
        }
    }

    /// Sets one back to its default.
    ///
    /// # Errors
    /// `UndefinedObject` for an unknown name.
    pub fn reset(&mut self, name: &str) -> Result<()> {
        let lower = canonical(name);
        if find(&lower).is_none() && !lower.contains('.') {
            return Err(unknown(name));
        }
        self.values.remove(&lower);
        match lower.as_str() {
            "timezone" => self.time_zone = Self::default().time_zone,
            "search_path" => self.search_path = Self::default().search_path,
            "statement_timeout" => self.statement_timeout = None,
            "lakebeat.publication" => self.publication = None,
            _ => {}
        }
        Ok(())
    }

    /// Sets one back to what it is in other settings.
    ///
    /// # Errors
    /// As [`Self::reset`].
    pub fn restore(&mut self, name: &str, from: &Self) -> Result<()> {
        self.reset(name)?;
        match from.values.get(&canonical(name)) {
            Some(value) => self.set(name, value),
            None => Ok(()),
        }
    }

    /// The value of one, as PostgreSQL shows it.
    ///
    /// # Errors
    /// `UndefinedObject` for an unknown name.
    pub fn show(&self, name: &str) -> Result<String> {
        let lower = canonical(name);
        if lower == "session_authorization" {
            return Ok(self.user.clone());
        }
        if let Some(value) = self.values.get(&lower) {
            return Ok(value.clone());
        }
        match find(&lower) {
            Some(setting) => Ok(setting.default.to_owned()),
            None => Err(unknown(name)),
        }
    }

    /// All of them with their values, by name.
    pub fn all(&self) -> Vec<(&'static str, String)> {
        KNOWN.iter().map(|setting| (setting.name, self.show(setting.name).unwrap_or_default())).collect()
    }
}

/// The name in its usual case: `timezone` is `TimeZone`.
pub(crate) fn display_name(name: &str) -> String {
    let lower = canonical(name);
    find(&lower).map_or(lower, |setting| setting.name.to_owned())
}

/// Names that are written in several ways.
fn canonical(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "time zone" => "timezone".to_owned(),
        "names" => "client_encoding".to_owned(),
        "transaction isolation level" => "transaction_isolation".to_owned(),
        "session characteristics" => "default_transaction_isolation".to_owned(),
        other => other.to_owned(),
    }
}

fn find(lower: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|setting| setting.name.eq_ignore_ascii_case(lower))
}

fn unknown(name: &str) -> Error {
    Error::new(Kind::UndefinedObject, format!("unrecognized configuration parameter \"{name}\"; `show all` lists them"))
}

fn switch(value: &str) -> Option<&'static str> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Some("on"),
        "off" | "false" | "no" | "0" | "f" | "n" => Some("off"),
        _ => None,
    }
}

fn duration(value: &str) -> Option<Duration> {
    let split = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let (digits, unit) = value.split_at(split);
    let number: u64 = digits.parse().ok()?;
    let milliseconds = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

/// `"$user", gold, "My Schema"` → the schemas that can exist here. A tool that only knows `public` finds what everybody
/// else finds.
fn split_path(path: &str) -> Vec<String> {
    let mut schemas = Vec::new();
    for part in path.split(',') {
        let name = part.trim().trim_matches(|letter| letter == '"' || letter == '\'');
        match name {
            "" | "$user" => {}
            "public" => schemas.extend(SEARCH_PATH.split(", ").map(str::to_owned)),
            name => schemas.push(name.to_owned()),
        }
    }
    schemas
}

fn canonical_time_zone(zone: &str) -> Result<String> {
    match zone.to_ascii_lowercase().as_str() {
        "utc" | "gmt" | "z" | "zulu" | "etc/utc" | "local" | "0" => return Ok("UTC".to_owned()),
        _ => {}
    }
    zone.parse::<Tz>().map_err(|error| {
        Error::with_source(
            Kind::InvalidSetting,
            format!("time zone \"{zone}\" is not known; use a name such as Europe/Berlin or an offset such as +02:00"),
            error,
        )
    })?;
    Ok(zone.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_checked_and_utc_has_one_name() {
        assert_eq!(canonical_time_zone("Etc/UTC").expect("known"), "UTC");
        assert_eq!(canonical_time_zone("+02:00").expect("known"), "+02:00");
        assert_eq!(canonical_time_zone("Europe/Berlin").expect("known"), "Europe/Berlin");
        assert_eq!(canonical_time_zone("Mars/Olympus").expect_err("unknown").kind(), Kind::InvalidSetting);
    }

    #[test]
    fn what_is_set_is_shown_and_takes_effect() {
        let mut settings = Settings::of_user("ana");
        for (name, value, shown) in [
            ("TIMEZONE", "Europe/Berlin", "Europe/Berlin"),
            ("extra_float_digits", "3", "3"),
            ("client_encoding", "utf-8", "UTF8"),
            ("DateStyle", "ISO", "ISO"),
            ("search_path", "\"$user\", silver", "\"$user\", silver"),
            ("statement_timeout", "5s", "5s"),
            ("my.own", "x", "x"),
            ("jit", "true", "on"),
            ("standard_conforming_strings", "1", "on"),
            ("lakebeat.publication", "7", "7"),
        ] {
            settings.set(name, value).expect(name);
            assert_eq!(settings.show(name).expect(name), shown, "{name}");
        }
        assert_eq!(settings.search_path, ["silver"]);
        assert_eq!(settings.statement_timeout, Some(Duration::from_secs(5)));
        assert_eq!(settings.publication, Some(7));
        assert_eq!(settings.show("session_authorization").expect("known"), "ana");

        let mut other = Settings::of_user("ana");
        other.set("timezone", "Asia/Tokyo").expect("a setting");
        for name in ["timezone", "my.own", "search_path"] {
            settings.restore(name, &other).expect(name);
        }
        assert_eq!((settings.time_zone.as_str(), settings.search_path.len()), ("Asia/Tokyo", other.search_path.len()));
        assert_eq!(settings.show("timezone").expect("known"), "Asia/Tokyo");
        assert!(settings.show("my.own").is_err(), "it was not set in the others");
        assert_eq!(settings.publication, Some(7), "nothing else is touched");
    }

    #[test]
    fn a_value_that_would_not_take_effect_is_refused() {
        let mut settings = Settings::default();
        for (name, value, state) in [
            ("client_encoding", "LATIN1", "22023"),
            ("DateStyle", "German", "22023"),
            ("standard_conforming_strings", "off", "22023"),
            ("server_version", "99", "22023"),
            ("statement_timeout", "soon", "22023"),
            ("nonsense", "1", "42704"),
            ("lakebeat.nonsense", "1", "42704"),
        ] {
            let error = settings.set(name, value).expect_err(name);
            assert_eq!(error.kind().sqlstate(), state, "{name}");
        }
        assert_eq!(settings, Settings::default());
    }
}
