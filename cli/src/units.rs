//! Sizes, rates and durations as people write and read them. Pure.

use std::time::Duration;

use steep_protocol::ByteCount;

/// What a suffix multiplies by, longest suffixes first so that none is taken for another's end.
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

/// Reads `50MB`, `1.5GiB`, `4096`: decimal units by thousands, the `i` units by 1,024; upper and
/// lower case alike. At least one byte.
///
/// # Errors
/// A sentence that says what is allowed.
pub(crate) fn parse_size(text: &str) -> Result<ByteCount, String> {
    let bad = || "write a size like 50MB, 10GB or 1GiB".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = SIZE_UNITS
        .iter()
        .find_map(|(suffix, unit)| Some((lower.strip_suffix(suffix)?.trim_end(), *unit)))
        .ok_or_else(bad)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    // Nine digits of fraction are more than any unit can tell apart in practice.
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

/// Reads `24h`, `90s`, `1h30m`, `2d`: whole numbers with `d h m s`, each unit once, from large to
/// small. At least one second.
///
/// # Errors
/// A sentence that says what is allowed.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
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
        // Taking units off the iterator is what refuses `1m1h` and `1h1h`.
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

/// `1.2 GB`: three significant digits or so, by thousands, as disks and networks are sold.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // What would round up to a thousand is written in the next unit.
        if value < 999.5 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// `85.2 MB/s`; nothing sensible below a byte a second.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", size(bytes_per_second.max(0.0).round() as u64))
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.4s`, `12.3s`, `2m05s`, `1h02m`, `3d04h`: the two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = if seconds.is_finite() {
        seconds.max(0.0)
    } else {
        0.0
    };
    if seconds < 59.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// `19s`, then as [`duration`]: what is estimated has no tenths.
pub(crate) fn eta(seconds: u64) -> String {
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        duration(seconds as f64)
    }
}

/// `43.1%`, never `100.0%` before all is done.
pub(crate) fn percent(value: f64) -> String {
    let value = if value.is_finite() {
        value.clamp(0.0, 100.0)
    } else {
        0.0
    };
    if value >= 100.0 {
        "100%".to_owned()
    } else {
        format!("{:.1}%", (value * 10.0).floor() / 10.0)
    }
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

    #[test]
    fn numbers_are_written_for_people() {
        let sizes = [
            0,
            999,
            1_000,
            99_940,
            99_960,
            999_400,
            999_600,
            2_900_000_000,
            u64::MAX,
        ];
        let written: Vec<_> = sizes.into_iter().map(size).collect();
        assert_eq!(
            written,
            [
                "0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "2.9 GB",
                "18.4 EB"
            ]
        );
        assert_eq!(
            [count(0), count(999), count(1_234_567)],
            ["0", "999", "1,234,567"]
        );
        let written = [0.04, 12.34, 59.96, 125.0, 3_725.0, 273_600.0].map(duration);
        assert_eq!(
            written,
            ["0.0s", "12.3s", "1m00s", "2m05s", "1h02m", "3d04h"]
        );
        assert_eq!([eta(0), eta(59), eta(60)], ["0s", "59s", "1m00s"]);
        let written = [f64::NAN, -1.0, 43.16, 99.99, 100.0].map(percent);
        assert_eq!(written, ["0.0%", "0.0%", "43.1%", "99.9%", "100%"]);
    }
}
