//! Formats numbers and lists of names for findings.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::Listed;

/// Most names in one finding, so that a screen of `doctor` output stays readable.
const SHOWN: usize = 10;

/// `a, b, c` or `a, b, … and 90 more`.
pub(crate) fn names(listed: &Listed) -> String {
    joined(&listed.names, listed.count)
}

/// As [`names`], for a plain list.
pub(super) fn all_names(names: &[String]) -> String {
    joined(names, names.len() as u64)
}

fn joined(names: &[String], count: u64) -> String {
    let shown = &names[..names.len().min(SHOWN)];
    let mut text = shown.join(", ");
    let rest = count.saturating_sub(shown.len() as u64);
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}

/// `1 table`, `2 tables`.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Bytes in a readable unit, in powers of 1000.
pub(crate) fn bytes(count: ByteCount) -> String {
    const UNITS: [&str; 6] = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count.0 as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 99.5);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// An estimated time: `40 s`, `12 min`, `5 h`.
pub(super) fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{} s", seconds.max(1)),
        120..7_200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3_600)),
    }
}

/// `server_version_num` as people write it: `17.4`.
pub(super) fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_says_how_much_it_leaves_out() {
        let listed: Listed = (0..250).map(|n| format!("t{n}")).collect();
        assert_eq!(listed.count, 250);
        assert!(names(&listed).ends_with("t9 and 240 more"), "{listed:?}");
        assert_eq!(all_names(&["a".into(), "b".into()]), "a, b");
    }

    #[test]
    fn bytes_read_as_people_say_them() {
        for (count, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_500, "1.5 kB"),
            (999_960, "1.0 MB"),
            (123_456_789, "123 MB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(ByteCount(count)), text);
        }
        assert_eq!(version(140_009), "14.9");
    }
}
