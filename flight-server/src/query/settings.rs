//! The settings of a connection that change what a statement means. What a protocol has besides (client encoding, date
//! style) stays with its door.

use std::time::Duration;

use datafusion::arrow::array::timezone::Tz;

use crate::error::{Error, Kind, Result};

/// Where unqualified names are looked up, in this order, unless a client says otherwise.
pub(crate) const DEFAULT_SEARCH_PATH: [&str; 3] = ["gold", "silver", "bronze"];

/// What a client may set for its own statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The zone in which dates and times without one are read, and in which PostgreSQL's text shows instants.
    pub time_zone: String,
    /// Schemas in which unqualified names are looked up, in this order.
    pub search_path: Vec<String>,
    /// A time limit shorter than the server's; `None`: the server's.
    pub statement_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            time_zone: "UTC".to_owned(),
            search_path: DEFAULT_SEARCH_PATH.map(str::to_owned).to_vec(),
            statement_timeout: None,
        }
    }
}

impl Settings {
    /// Sets the zone: a name (`Europe/Berlin`), an offset (`+02:00`), `UTC` or `default`.
    ///
    /// # Errors
    /// `InvalidSetting` for a zone that is not known.
    pub fn set_time_zone(&mut self, zone: &str) -> Result<()> {
        self.time_zone = canonical_time_zone(zone)?;
        Ok(())
    }
}

fn canonical_time_zone(zone: &str) -> Result<String> {
    let zone = zone.trim();
    match zone.to_ascii_lowercase().as_str() {
        "utc" | "gmt" | "z" | "zulu" | "etc/utc" | "default" | "local" => return Ok("UTC".to_owned()),
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
        assert_eq!(
            canonical_time_zone("Mars/Olympus").expect_err("unknown").kind(),
            Kind::InvalidSetting
        );
    }
}
