//! Formats sizes, rates and durations. Pure.

pub(crate) use steep_protocol::units::{parse_duration, parse_size};

/// `1.2 GB`: three significant digits or so, by thousands, as disks and networks are sold.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // Below this, the value does not round up to 1000.
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

/// `85.2 MB/s`.
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

/// [`duration`] of an estimate: `19s`, without tenths.
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
