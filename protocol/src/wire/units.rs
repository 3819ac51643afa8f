//! Sizes and durations as written on command lines and in configuration files. Pure.

use std::time::Duration;

use super::ByteCount;

/// Suffixes and their factors, longest first so that none matches another's end.
const SIZE_UNITS: [(&str, u64); 14] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("b", 1),
    ("", 1),
];

/// Reads `50MB`, `1.5GiB`, `4096`: decimal units are powers of 1,000, the `i` units powers of
/// 1,024; case is ignored. At least one byte.
///
/// # Errors
/// A sentence that names the allowed values.
pub fn parse_size(text: &str) -> Result<ByteCount, String> {
    let bad = || "write a size like 50MB, 10GB or 1GiB".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = SIZE_UNITS
        .iter()
        .find_map(|(suffix, unit)| Some((lower.strip_suffix(suffix)?.trim_end(), *unit)))
        .ok_or_else(bad)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    // More than nine digits of a fraction make no difference for any unit.
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(bad());
    }
    let too_large = || format!("{text} is more than this can count");
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
    let fraction: u128 = fraction.parse().map_err(|_| bad())?;
    let bytes = u128::from(whole) * u128::from(unit) + fraction * u128::from(unit) / scale;
    match u64::try_from(bytes).map_err(|_| too_large())? {
        0 => Err("the size must be more than nothing".to_owned()),
        bytes => Ok(ByteCount(bytes)),
    }
}

/// Reads `24h`, `90s`, `1h30m`, `2d`: whole numbers with `d h m s`, each unit at most once, from
/// large to small. At least one second.
///
/// # Errors
/// A sentence that names the allowed values.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || "write a duration like 90s, 30m, 24h or 1h30m".to_owned();
    let mut units = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1u64)].into_iter();
    let mut rest = text.trim();
    let mut seconds: u64 = 0;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(end);
        let mut chars = tail.chars();
        let unit = chars.next().ok_or_else(bad)?;
        // Advancing the iterator rejects `1m1h` and `1h1h`.
        let (_, scale) = units.find(|(name, _)| *name == unit).ok_or_else(bad)?;
        if number.is_empty() {
            return Err(bad());
        }
        seconds = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
            .and_then(|more| seconds.checked_add(more))
            .filter(|total| *total <= 10 * 365 * 86_400)
            .ok_or_else(|| format!("{text} is longer than ten years"))?;
        rest = chars.as_str();
    }
    if seconds == 0 {
        return Err("the duration must be more than nothing".to_owned());
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_thousands_and_in_1024s() {
        for (text, bytes) in [
            ("50MB", 50_000_000),
            ("10GB", 10_000_000_000),
            ("1GiB", 1 << 30),
            ("1gib", 1 << 30),
            ("1.5kB", 1_500),
            ("0.5 MiB", 1 << 19),
            ("4096", 4096),
            ("1b", 1),
            ("2k", 2_000),
            ("3T", 3_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(ByteCount(bytes)), "{text}");
        }
        for bad in [
            "",
            "MB",
            "-1MB",
            "1e3",
            "1..5MB",
            ".5MB",
            "5.",
            "0",
            "0MB",
            "1ZB",
            "1 2MB",
            "1MBs",
            "99999999TB",
            "18446744073709551616",
            "1.0000000001GB",
            "٣MB",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn durations_are_read_from_large_units_to_small() {
        for (text, seconds) in [
            ("24h", 86_400),
            ("90s", 90),
            ("1h30m", 5_400),
            ("2d", 172_800),
            ("1d2h3m4s", 93_784),
            ("168h", 604_800),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for bad in [
            "",
            "90",
            "h",
            "1x",
            "1h1h",
            "30m1h",
            "1.5h",
            "-1h",
            "0s",
            "99999999d",
            "18446744073709551616s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was taken");
        }
    }
}
