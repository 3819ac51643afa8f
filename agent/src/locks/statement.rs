//! Another session's statement for display: short, on one line, without values.

use steep_protocol::limits::STATEMENT_SHOWN;

/// Literals become `'…'`, as they may hold row values or secrets; whitespace and control characters become
/// one space; the rest is cut.
pub(super) fn shown(statement: &str) -> String {
    let mut text = String::new();
    let mut count = 0;
    let mut rest = statement.chars().peekable();
    while let Some(c) = rest.next() {
        if count == STATEMENT_SHOWN {
            text.push('…');
            break;
        }
        if c == '\'' {
            // A doubled quote ends one literal and begins the next, with the same result.
            while rest.next_if(|c| *c != '\'').is_some() {}
            rest.next();
            if !text.ends_with("'…'") {
                text.push_str("'…'");
                count += 3;
            }
        } else if c == '$' && rest.peek().is_some_and(|c| !c.is_ascii_digit()) {
            // A dollar-quoted body: the rest is not worth parsing.
            text.push('…');
            break;
        } else if c.is_whitespace() || c.is_control() {
            if !text.is_empty() && !text.ends_with(' ') {
                text.push(' ');
                count += 1;
            }
        } else {
            text.push(c);
            count += 1;
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_shown_without_values_on_one_line_and_short() {
        let cases = [
            (
                "ALTER TABLE t\n\tADD COLUMN c int;",
                "ALTER TABLE t ADD COLUMN c int;",
            ),
            (
                "INSERT INTO t VALUES ('it''s', 'two')",
                "INSERT INTO t VALUES ('…', '…')",
            ),
            ("UPDATE t SET a = 'cut off", "UPDATE t SET a = '…'"),
            ("DO $x$ SELECT 'secret' $x$", "DO …"),
            ("SELECT $1\u{1b}[31m", "SELECT $1 [31m"),
            ("", ""),
        ];
        for (given, wanted) in cases {
            assert_eq!(shown(given), wanted);
        }
        let long = shown(&"x".repeat(10_000));
        assert_eq!(long.chars().count(), STATEMENT_SHOWN + 1);
    }
}
