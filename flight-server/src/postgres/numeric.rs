//! PostgreSQL's `numeric`, from and to decimal digits: all of them, also where no machine number holds them.
//!
//! Binary form (`numeric_send` in PostgreSQL's numeric.c): groups of four digits with a common weight, sign and scale.

use bytes::{Buf, BufMut, BytesMut};

use crate::error::{Error, Kind, Result};

const NEGATIVE: u16 = 0x4000;
const NOT_A_NUMBER: u16 = 0xC000;
const POSITIVE_INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// Writes an unscaled whole number (`-12345`) with its scale (2): `-123.45`.
pub(super) fn put_text(unscaled: &str, scale: i8, out: &mut BytesMut) {
    let (sign, whole, fraction) = parts(unscaled, scale);
    out.put_slice(sign.as_bytes());
    out.put_slice(whole.as_bytes());
    if !fraction.is_empty() {
        out.put_u8(b'.');
        out.put_slice(fraction.as_bytes());
    }
}

/// The same in binary.
pub(super) fn put_binary(unscaled: &str, scale: i8, out: &mut BytesMut) {
    let (sign, whole, fraction) = parts(unscaled, scale);
    let whole = whole.trim_start_matches('0');
    // Whole digits are grouped from the point to the left, the fraction from the point to the right.
    let lead = (4 - whole.len() % 4) % 4;
    let trail = (4 - fraction.len() % 4) % 4;
    let digits = format!("{}{whole}{fraction}{}", "0".repeat(lead), "0".repeat(trail));
    let mut groups: Vec<i16> = digits
        .as_bytes()
        .chunks(4)
        .map(|chunk| chunk.iter().fold(0, |group, digit| group * 10 + i16::from(digit - b'0')))
        .collect();
    let mut weight = (whole.len() + lead) as i64 / 4 - 1;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..zeros);
    weight -= zeros as i64;
    if groups.is_empty() {
        weight = 0;
    }
    let is_negative = !sign.is_empty() && !groups.is_empty();
    out.put_i16(i16::try_from(groups.len()).unwrap_or(i16::MAX));
    out.put_i16(i16::try_from(weight).unwrap_or(0));
    out.put_u16(if is_negative { NEGATIVE } else { 0 });
    out.put_u16(u16::try_from(fraction.len()).unwrap_or(0));
    for group in groups {
        out.put_i16(group);
    }
}

/// Sign, digits before the point (at least one) and digits after it.
fn parts(unscaled: &str, scale: i8) -> (&'static str, String, String) {
    let (sign, digits) = unscaled.strip_prefix('-').map_or(("", unscaled), |digits| ("-", digits));
    match usize::try_from(scale) {
        // A negative scale: zeros before the point that are not stored.
        Err(_) => (sign, format!("{digits}{}", "0".repeat(usize::from(scale.unsigned_abs()))), String::new()),
        Ok(scale) => {
            let padded = format!("{digits:0>width$}", width = scale + 1);
            let (whole, fraction) = padded.split_at(padded.len() - scale);
            (sign, whole.to_owned(), fraction.to_owned())
        }
    }
}

/// Reads the binary form as decimal digits: `-123.45`.
///
/// # Errors
/// `InvalidValue` for NaN and infinities, which no decimal here holds, and for what is no numeric.
pub(super) fn read_binary(mut bytes: &[u8]) -> Result<String> {
    let malformed = || Error::new(Kind::InvalidValue, "a numeric parameter is malformed");
    if bytes.len() < 8 {
        return Err(malformed());
    }
    let count = usize::from(bytes.get_u16());
    let weight = i32::from(bytes.get_i16());
    let sign = bytes.get_u16();
    let scale = usize::from(bytes.get_u16());
    if bytes.len() != count * 2 {
        return Err(malformed());
    }
    let sign = match sign {
        0 => "",
        NEGATIVE => "-",
        NOT_A_NUMBER | POSITIVE_INFINITY | NEGATIVE_INFINITY => {
            return Err(Error::new(Kind::InvalidValue, "a numeric parameter is NaN or infinite; send it as float8"));
        }
        _ => return Err(malformed()),
    };
    let mut groups = Vec::with_capacity(count);
    for _ in 0..count {
        let group = bytes.get_u16();
        if group > 9_999 {
            return Err(malformed());
        }
        groups.push(group);
    }
    let group_at = |weight_of_group: i32| -> u16 {
        usize::try_from(weight - weight_of_group).ok().and_then(|index| groups.get(index)).copied().unwrap_or(0)
    };
    let mut text = String::from(sign);
    for weight_of_group in (0..=weight.max(0)).rev() {
        text.push_str(&format!("{:04}", group_at(weight_of_group)));
    }
    let mut fraction = String::new();
    let mut weight_of_group = -1;
    while fraction.len() < scale {
        fraction.push_str(&format!("{:04}", group_at(weight_of_group)));
        weight_of_group -= 1;
    }
    fraction.truncate(scale);
    let digits = text.trim_start_matches('-').trim_start_matches('0');
    let whole = if digits.is_empty() { "0" } else { digits };
    let point = if scale > 0 { "." } else { "" };
    Ok(format!("{sign}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_survive_the_way_through_the_binary_form() {
        for (unscaled, scale, expected) in [
            ("0", 0, "0"),
            ("0", 2, "0.00"),
            ("12345", 2, "123.45"),
            ("-5", 2, "-0.05"),
            ("10000", 0, "10000"),
            ("100000000", 4, "10000.0000"),
            ("1", 8, "0.00000001"),
            ("99999999999999999999999999999999999999", 0, "99999999999999999999999999999999999999"),
            ("-12345678901234567890123456789012345678", 10, "-1234567890123456789012345678.9012345678"),
            ("12", -3, "12000"),
        ] {
            let mut text = BytesMut::new();
            put_text(unscaled, scale, &mut text);
            assert_eq!(text, expected.as_bytes(), "{unscaled} {scale}");
            let mut binary = BytesMut::new();
            put_binary(unscaled, scale, &mut binary);
            assert_eq!(read_binary(&binary).expect("well-formed"), expected);
        }
    }

    #[test]
    fn the_binary_form_is_postgresqls() {
        // select numeric_send(12345.678): three groups, weight 1, scale 3
        let mut binary = BytesMut::new();
        put_binary("12345678", 3, &mut binary);
        assert_eq!(binary[..], [0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]);
    }

    #[test]
    fn a_malformed_numeric_is_an_error() {
        for bytes in
            [&[][..], &[0, 1, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0xC0, 0, 0, 0], &[0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff]]
        {
            assert_eq!(read_binary(bytes).expect_err("malformed").kind(), Kind::InvalidValue);
        }
    }
}
