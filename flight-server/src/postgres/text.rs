//! PostgreSQL's text forms of single values (`DateStyle` ISO, `IntervalStyle` postgres, `bytea_output` hex).

use std::fmt::{self, Write};

use bytes::{BufMut, BytesMut};
use chrono::{DateTime, Offset, TimeZone};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::datatypes::IntervalMonthDayNano;

const MICROSECONDS_PER_SECOND: i64 = 1_000_000;
const MICROSECONDS_PER_DAY: i64 = 86_400 * MICROSECONDS_PER_SECOND;

/// The zone in which instants are shown.
#[derive(Clone, Copy)]
pub(super) enum Zone {
    Utc,
    Named(Tz),
}

impl Zone {
    /// The zone of a setting, which was checked when it was set.
    pub(super) fn parse(name: &str) -> Self {
        match name.parse::<Tz>() {
            Ok(zone) if name != "UTC" => Self::Named(zone),
            _ => Self::Utc,
        }
    }

    /// Seconds east of UTC at an instant.
    fn offset_seconds(self, microseconds: i64) -> i64 {
        match self {
            Self::Utc => 0,
            Self::Named(zone) => DateTime::from_timestamp_micros(microseconds).map_or(0, |instant| {
                i64::from(zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc())
            }),
        }
    }
}

/// Whatever shows itself as PostgreSQL does: whole numbers.
pub(super) fn put_display(value: impl fmt::Display, out: &mut BytesMut) {
    // Writing to a growing buffer does not fail.
    let _ = write!(out, "{value}");
}

/// The shortest digits that read back as the same number; exponents from 15 digits on.
pub(super) fn put_f64(value: f64, out: &mut BytesMut) {
    put_float(value, &format_args!("{value:e}"), 15, out);
}

/// As [`put_f64`], for single precision; exponents from 6 digits on.
pub(super) fn put_f32(value: f32, out: &mut BytesMut) {
    put_float(f64::from(value), &format_args!("{value:e}"), 6, out);
}

fn put_float(value: f64, scientific: &fmt::Arguments<'_>, fixed_digits: i32, out: &mut BytesMut) {
    if value.is_nan() {
        return out.put_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.put_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    // "-1.25e-7": sign, digits with a point after the first, exponent.
    let text = scientific.to_string();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text.as_str(), "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    out.put_slice(sign.as_bytes());
    if (-4..fixed_digits).contains(&exponent) {
        put_fixed(&digits, exponent, out);
    } else {
        out.put_slice(mantissa.as_bytes());
        let sign = if exponent < 0 { '-' } else { '+' };
        put_display(format_args!("e{sign}{:02}", exponent.unsigned_abs()), out);
    }
}

/// Digits with the point after the first, shifted by the exponent.
fn put_fixed(digits: &str, exponent: i32, out: &mut BytesMut) {
    match usize::try_from(exponent) {
        Err(_) => {
            let zeros = usize::try_from(-exponent - 1).unwrap_or(0);
            out.put_slice(b"0.");
            out.put_bytes(b'0', zeros);
            out.put_slice(digits.as_bytes());
        }
        Ok(exponent) if digits.len() <= exponent + 1 => {
            out.put_slice(digits.as_bytes());
            out.put_bytes(b'0', exponent + 1 - digits.len());
        }
        Ok(exponent) => {
            let (whole, fraction) = digits.split_at(exponent + 1);
            out.put_slice(whole.as_bytes());
            out.put_u8(b'.');
            out.put_slice(fraction.as_bytes());
        }
    }
}

pub(super) fn put_bytes(value: &[u8], out: &mut BytesMut) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.put_slice(b"\\x");
    for byte in value {
        out.put_u8(DIGITS[usize::from(byte >> 4)]);
        out.put_u8(DIGITS[usize::from(byte & 15)]);
    }
}

/// Days since 1970-01-01.
pub(super) fn put_date(days: i32, out: &mut BytesMut) {
    let (year, month, day) = civil(i64::from(days));
    put_year(year, month, day, out);
    put_era(year, out);
}

/// Microseconds since midnight.
pub(super) fn put_time(microseconds: i64, out: &mut BytesMut) {
    let seconds = microseconds.div_euclid(MICROSECONDS_PER_SECOND);
    let fraction = microseconds.rem_euclid(MICROSECONDS_PER_SECOND);
    put_display(format_args!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60), out);
    put_fraction(fraction, out);
}

/// Microseconds since 1970-01-01 00:00, in no zone.
pub(super) fn put_timestamp(microseconds: i64, out: &mut BytesMut) {
    let year = put_timestamp_without_era(microseconds, out);
    put_era(year, out);
}

/// Microseconds since the epoch, shown in a zone.
pub(super) fn put_instant(microseconds: i64, zone: &Zone, out: &mut BytesMut) {
    let offset = zone.offset_seconds(microseconds);
    let local = microseconds.saturating_add(offset * MICROSECONDS_PER_SECOND);
    let year = put_timestamp_without_era(local, out);
    let sign = if offset < 0 { '-' } else { '+' };
    let offset = offset.abs();
    put_display(format_args!("{sign}{:02}", offset / 3_600), out);
    if offset % 3_600 != 0 {
        put_display(format_args!(":{:02}", offset / 60 % 60), out);
    }
    if offset % 60 != 0 {
        put_display(format_args!(":{:02}", offset % 60), out);
    }
    put_era(year, out);
}

fn put_timestamp_without_era(microseconds: i64, out: &mut BytesMut) -> i64 {
    let (year, month, day) = civil(microseconds.div_euclid(MICROSECONDS_PER_DAY));
    put_year(year, month, day, out);
    out.put_u8(b' ');
    put_time(microseconds.rem_euclid(MICROSECONDS_PER_DAY), out);
    year
}

fn put_year(year: i64, month: u32, day: u32, out: &mut BytesMut) {
    // There is no year 0: the one before 1 is 1 BC.
    let shown = if year > 0 { year } else { 1 - year };
    put_display(format_args!("{shown:04}-{month:02}-{day:02}"), out);
}

fn put_era(year: i64, out: &mut BytesMut) {
    if year <= 0 {
        out.put_slice(b" BC");
    }
}

/// At most six digits, without zeros at the end; nothing if there is no fraction.
fn put_fraction(microseconds: i64, out: &mut BytesMut) {
    if microseconds != 0 {
        let digits = format!("{microseconds:06}");
        put_display(format_args!(".{}", digits.trim_end_matches('0')), out);
    }
}

/// Year, month and day of a day since 1970-01-01, for all that fit (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", civil_from_days).
fn civil(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let small = |number: i64| u32::try_from(number).expect("days and months are small and positive");
    (year, small(month), small(day))
}

/// `1 year 2 mons 3 days 04:05:06.5`
pub(super) fn put_interval(value: IntervalMonthDayNano, out: &mut BytesMut) {
    let start = out.len();
    let mut part = |number: i32, unit: &str| {
        if number != 0 {
            let space = if out.len() > start { " " } else { "" };
            let plural = if number == 1 { "" } else { "s" };
            put_display(format_args!("{space}{number} {unit}{plural}"), out);
        }
    };
    part(value.months / 12, "year");
    part(value.months % 12, "mon");
    part(value.days, "day");
    let microseconds = value.nanoseconds / 1_000;
    if microseconds != 0 || out.len() == start {
        if out.len() > start {
            out.put_u8(b' ');
        }
        if microseconds < 0 {
            out.put_u8(b'-');
        }
        put_time(microseconds.saturating_abs(), out);
    }
}

/// An element of an array, in quotes where PostgreSQL puts them.
pub(super) fn put_array_element(element: &[u8], out: &mut BytesMut) {
    let is_special = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\');
    if !element.is_empty() && !element.iter().any(is_special) && !element.eq_ignore_ascii_case(b"null") {
        return out.put_slice(element);
    }
    out.put_u8(b'"');
    for byte in element {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(put: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        put(&mut out);
        String::from_utf8(out.to_vec()).expect("text is UTF-8")
    }

    #[test]
    fn floats() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (1.5, "1.5"),
            (-1_234.25, "-1234.25"),
            (0.1, "0.1"),
            (0.000_1, "0.0001"),
            (0.000_01, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1.234e300, "1.234e+300"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(written(|out| put_f64(value, out)), expected);
        }
        assert_eq!(written(|out| put_f32(0.1, out)), "0.1");
        assert_eq!(written(|out| put_f32(100_000.0, out)), "100000");
        assert_eq!(written(|out| put_f32(1_000_000.0, out)), "1e+06");
    }

    #[test]
    fn dates_and_times() {
        assert_eq!(written(|out| put_date(0, out)), "1970-01-01");
        assert_eq!(written(|out| put_date(20_454, out)), "2026-01-01");
        assert_eq!(written(|out| put_date(-719_529, out)), "0002-12-31 BC");
        assert_eq!(written(|out| put_timestamp(-1, out)), "1969-12-31 23:59:59.999999");
        assert_eq!(written(|out| put_timestamp(1_500_000, out)), "1970-01-01 00:00:01.5");
        assert_eq!(written(|out| put_time(86_399_000_000, out)), "23:59:59");
    }

    #[test]
    fn instants_in_their_zone() {
        let instant = 1_767_261_600_000_000; // 2026-01-01 10:00 UTC
        for (zone, expected) in [
            ("UTC", "2026-01-01 10:00:00+00"),
            ("Europe/Berlin", "2026-01-01 11:00:00+01"),
            ("Asia/Kolkata", "2026-01-01 15:30:00+05:30"),
            ("-03:00", "2026-01-01 07:00:00-03"),
        ] {
            assert_eq!(written(|out| put_instant(instant, &Zone::parse(zone), out)), expected);
        }
    }

    #[test]
    fn intervals() {
        for ((months, days, nanoseconds), expected) in [
            ((0, 0, 0), "00:00:00"),
            ((14, 3, 14_706_500_000_000), "1 year 2 mons 3 days 04:05:06.5"),
            ((1, 1, 0), "1 mon 1 day"),
            ((0, 0, -1_000_000_000), "-00:00:01"),
        ] {
            let value = IntervalMonthDayNano { months, days, nanoseconds };
            assert_eq!(written(|out| put_interval(value, out)), expected);
        }
    }
}
