//! Splits SQL as PostgreSQL prints it, just enough to tell names from literals.
//!
//! The input is a definition printed with `standard_conforming_strings` on; other text gives wrong
//! results, but no error.

use std::borrow::Cow;
use std::collections::BTreeSet;

use steep_protocol::{Identifier, TableName};

/// Words that PostgreSQL 16 and 17 made keywords and therefore quote as names. `extension/` has the
/// same list; a test compares it with real servers'.
const NEW_KEYWORDS: [&str; 13] = [
    "json",
    "json_array",
    "json_arrayagg",
    "json_exists",
    "json_object",
    "json_objectagg",
    "json_query",
    "json_scalar",
    "json_serialize",
    "json_table",
    "json_value",
    "merge_action",
    "system_user",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// A name, or a keyword.
    Bare(&'a str),
    /// The text between double quotes, inner ones still doubled.
    Quoted(&'a str),
    /// A string literal with its quotes.
    Literal(&'a str),
    /// Any other character.
    Other(&'a str),
}

impl<'a> Token<'a> {
    /// The name it stands for, if it is one.
    fn name(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Bare(name) => Some(Cow::Borrowed(name)),
            Self::Quoted(inner) if inner.contains('"') => {
                Some(Cow::Owned(inner.replace("\"\"", "\"")))
            }
            Self::Quoted(inner) => Some(Cow::Borrowed(inner)),
            Self::Literal(_) | Self::Other(_) => None,
        }
    }

    fn write(self, out: &mut String) {
        match self {
            Self::Quoted(inner) => {
                out.push('"');
                out.push_str(inner);
                out.push('"');
            }
            Self::Bare(text) | Self::Literal(text) | Self::Other(text) => out.push_str(text),
        }
    }
}

fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let begins = |c: char| c.is_alphabetic() || c == '_';
        let length = match first {
            '"' | '\'' => enclosed(rest, first),
            _ if begins(first) => {
                let ends = |c: char| !(begins(c) || c.is_numeric() || c == '$');
                rest.find(ends).unwrap_or(rest.len())
            }
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        Some(match first {
            '"' => {
                let inner = &token[1..];
                Token::Quoted(inner.strip_suffix('"').unwrap_or(inner))
            }
            '\'' => Token::Literal(token),
            _ if begins(first) => Token::Bare(token),
            _ => Token::Other(token),
        })
    })
}

/// The length of a quoted text at the beginning; doubled quotes do not end it.
fn enclosed(text: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(found) = text[at..].find(quote) {
        at += found + 1;
        if !text[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    text.len()
}

/// The text in the spelling of versions before 16: without quotes around [`NEW_KEYWORDS`].
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains('"') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for token in tokens(text) {
        match token {
            Token::Quoted(inner) if NEW_KEYWORDS.contains(&inner) => out.push_str(inner),
            token => token.write(&mut out),
        }
    }
    Cow::Owned(out)
}

/// The one of [`NEW_KEYWORDS`] that cannot be a column without quotes. PostgreSQL prints the
/// function in capitals.
const RESERVED: &str = "system_user";

/// The text in a spelling that all versions accept.
pub(crate) fn runnable(text: String) -> String {
    if !text.contains(RESERVED) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 2);
    for token in tokens(&text) {
        match token {
            Token::Bare(RESERVED) => Token::Quoted(RESERVED).write(&mut out),
            token => token.write(&mut out),
        }
    }
    out
}

/// [`plain`] with the `renamed` names replaced by their positions in it: texts that differ only in
/// those names become equal.
pub(crate) fn numbered<'a>(text: &str, renamed: impl Iterator<Item = &'a str> + Clone) -> String {
    let mut out = String::with_capacity(text.len());
    for token in tokens(&plain(text)) {
        let name = token.name();
        let place = name.and_then(|name| renamed.clone().position(|renamed| renamed == name));
        match place {
            // PostgreSQL's texts never contain a NUL.
            Some(place) => out.push_str(&format!("\0{place}")),
            None => token.write(&mut out),
        }
    }
    out
}

/// Every name in it, including keywords.
pub(crate) fn names(text: &str) -> BTreeSet<String> {
    let names = tokens(text).filter_map(Token::name);
    names.map(Cow::into_owned).collect()
}

/// Every `schema.name` in it.
pub(crate) fn qualified(text: &str) -> Vec<TableName> {
    let mut found = Vec::new();
    let mut before: [Option<Token<'_>>; 2] = [None, None];
    for token in tokens(text) {
        if let ([Some(schema), Some(Token::Other("."))], Some(name)) = (before, token.name())
            && let Some(schema) = schema.name()
            && let Ok(name) = TableName::new(schema, name)
        {
            found.push(name);
        }
        before = [before[1], Some(token)];
    }
    found
}

/// Splits `FOREIGN KEY (…) REFERENCES table(…) …` into the part before the table, the table, and
/// the rest.
pub(crate) fn references(definition: &str) -> Option<(&str, TableName, &str)> {
    const WORD: &str = " REFERENCES ";
    let mut outside = true;
    let at = definition.char_indices().find_map(|(at, c)| {
        outside ^= c == '"';
        (outside && definition[at..].starts_with(WORD)).then_some(at)
    })?;
    let (before, rest) = (&definition[..at], &definition[at + WORD.len()..]);
    let mut outside = true;
    let end = rest.char_indices().find_map(|(at, c)| {
        outside ^= c == '"';
        (outside && c == '(').then_some(at)
    })?;
    let (table, after) = rest.split_at(end);
    Some((before, TableName::parse_typed(table).ok()?, after))
}

/// Splits a sequence's definition into the part before the owner and the owning column.
pub(crate) fn owner(definition: &str) -> (&str, Option<(TableName, Identifier)>) {
    let Some((parameters, owner)) = definition.split_once(" OWNED BY ") else {
        return (definition, None);
    };
    let mut names = tokens(owner).filter_map(Token::name);
    let mut next = || Identifier::parse(names.next()?).ok();
    let column = || {
        let (schema, table) = (next()?, next()?);
        Some((TableName { schema, table }, next()?))
    };
    (parameters, { column }())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_of_new_keywords_go_where_they_are_names_only() {
        for (text, expected) in [
            ("upper(\"json\")", "upper(json)"),
            ("'{\"json\": 1}'::jsonb", "'{\"json\": 1}'::jsonb"),
            ("upper(\"jsonData\")", "upper(\"jsonData\")"),
            ("\"a\"\"json\"", "\"a\"\"json\""),
            ("\"json\"\"a\"", "\"json\"\"a\""),
            ("\"it's\" || \"json\"", "\"it's\" || json"),
            (
                "'it''s \"json\"' || \"json_value\"",
                "'it''s \"json\"' || json_value",
            ),
            ("'unclosed \"json\"", "'unclosed \"json\""),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn a_name_that_is_reserved_since_is_quoted_where_it_is_run() {
        let run = |text: &str| runnable(text.to_owned());
        assert_eq!(
            run("CHECK ((system_user <> 'system_user') OR (SYSTEM_USER = my_system_user))"),
            "CHECK ((\"system_user\" <> 'system_user') OR (SYSTEM_USER = my_system_user))"
        );
        assert_eq!(run("\"system_user\" text"), "\"system_user\" text");
    }

    #[test]
    fn renamed_names_are_one_and_literals_are_not_names() {
        let of = |text, names: [&'static str; 2]| numbered(text, names.into_iter());
        assert_eq!(
            of("CHECK ((a > 0) AND (b <> 'a'))", ["a", "b"]),
            of("CHECK ((\"Odd\" > 0) AND (a <> 'a'))", ["Odd", "a"])
        );
        assert_ne!(
            of("CHECK (a > 'a')", ["a", "x"]),
            of("CHECK (b > 'b')", ["b", "x"])
        );
    }

    #[test]
    fn names_are_found_whatever_they_hold() {
        let name = |schema: &str, table: &str| TableName::new(schema, table).unwrap();
        assert_eq!(
            qualified("app.\"Odd (x)\"[] DEFAULT 'no.name'::\"A.b\".mood"),
            [name("app", "Odd (x)"), name("A.b", "mood")]
        );
        let (before, table, after) = references(
            "FOREIGN KEY (\" REFERENCES \") REFERENCES app.\"t(1\"(id) ON DELETE CASCADE",
        )
        .unwrap();
        assert_eq!(before, "FOREIGN KEY (\" REFERENCES \")");
        assert_eq!(
            (table, after),
            (name("app", "t(1"), "(id) ON DELETE CASCADE")
        );
        let (parameters, owned) = owner("AS bigint OWNED BY \"a\".\"b\"\".c\".\"d\"");
        assert_eq!(parameters, "AS bigint");
        assert_eq!(
            owned,
            Some((name("a", "b\".c"), Identifier::parse("d").unwrap()))
        );
        assert_eq!(owner("AS bigint"), ("AS bigint", None));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_without_loss(text in "[a\"'. é(\\PC]{0,40}") {
            let mut again = String::new();
            tokens(&text).for_each(|token| token.write(&mut again));
            // An unterminated quote is closed.
            prop_assert!(again.strip_prefix(text.as_str()).is_some_and(|more| more.is_empty() || more == "\""), "{again}");
            let _ = (plain(&text), qualified(&text), references(&text), owner(&text));
        }
    }
}
