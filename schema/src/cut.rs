//! Truncation of long definitions.
//!
//! Truncated texts are equal exactly if the whole texts are, and cannot be confused with a whole
//! one: they end with a character outside of literals and quoted names that PostgreSQL never writes
//! there.

use sha2::{Digest as _, Sha256};

/// The separator between a text's beginning and its length.
const BEGIN: &str = "… (";

/// The separator between its length and its digest.
const MIDDLE: &str = " bytes, SHA-256 ";

/// The text; if it is longer than `max` bytes, its beginning, its length and its digest.
#[must_use]
pub fn bounded(text: String, max: usize) -> String {
    if text.len() <= max {
        return text;
    }
    let digest: String = Sha256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut end = max / 2;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{BEGIN}{}{MIDDLE}{digest})", &text[..end], text.len())
}

/// Whether it contains truncated text, which must never be run.
pub(crate) fn holds_cut(text: &str) -> bool {
    text.match_indices(BEGIN).any(|(at, _)| {
        let rest = text[at + BEGIN.len()..].trim_start_matches(|c: char| c.is_ascii_digit());
        let digest = rest.strip_prefix(MIDDLE).and_then(|rest| rest.get(..65));
        digest.is_some_and(|digest| {
            digest.ends_with(')') && digest[..64].bytes().all(|b| b.is_ascii_hexdigit())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_still_told_from_another() {
        let long = |end: &str| bounded("ä".repeat(100) + end, 64);
        assert!(long("x").len() < 160);
        assert_ne!(long("x"), long("y"));
        assert_eq!(long("x"), long("x"));
        assert_eq!(bounded("short".to_owned(), 64), "short");
    }

    #[test]
    fn a_text_that_was_cut_says_so_wherever_it_is_put() {
        let cut = bounded("'x'".repeat(100), 64);
        assert!(holds_cut(&format!(
            "ALTER TABLE t ADD CHECK ({cut}) NOT VALID"
        )));
        assert!(!holds_cut("DEFAULT '… (5 bytes, SHA-256 no)'"));
    }
}
