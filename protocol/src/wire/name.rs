//! SQL names. Text is parsed into an [`Identifier`] once, where it enters; only an identifier can
//! be quoted, and SQL is built from quoted identifiers only (G10).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name PostgreSQL keeps, in bytes (`NAMEDATALEN - 1`).
const IDENTIFIER_MAX: usize = 63;

/// Text that cannot be the name of an SQL object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The name is empty.
    #[error("an SQL name cannot be empty")]
    Empty,
    /// The name is longer than [`IDENTIFIER_MAX`].
    #[error("an SQL name holds at most {IDENTIFIER_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// The name contains a NUL, which no PostgreSQL text can.
    #[error("an SQL name cannot contain a NUL byte")]
    Nul,
    /// The text is not of the form `schema.table`.
    #[error("{0:?} does not name a table: write schema.table, quoting parts as SQL does")]
    NotATable(String),
}

/// The name of an SQL object exactly as in the catalog: case preserved, not quoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identifier(String);

impl Identifier {
    /// Accepts a name as in the catalog.
    ///
    /// # Errors
    /// [`InvalidName`] if PostgreSQL allows no such name.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if text.is_empty() {
            Err(InvalidName::Empty)
        } else if text.len() > IDENTIFIER_MAX {
            Err(InvalidName::TooLong(text.len()))
        } else if text.contains('\0') {
            Err(InvalidName::Nul)
        } else {
            Ok(Self(text))
        }
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in double quotes, inner quotes doubled: safe in any SQL text.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }
}

impl TryFrom<String> for Identifier {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl From<Identifier> for String {
    fn from(name: Identifier) -> Self {
        name.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A table, by schema and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Its schema.
    pub schema: Identifier,
    /// Its own name.
    pub table: Identifier,
}

impl TableName {
    /// Accepts both names as in the catalog.
    ///
    /// # Errors
    /// [`InvalidName`] if either is not valid.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Result<Self, InvalidName> {
        Ok(Self {
            schema: Identifier::parse(schema)?,
            table: Identifier::parse(table)?,
        })
    }

    /// Parses typed text: `schema.table`, `"Odd Schema"."Table"`, or a bare `table` in `public`.
    /// Unquoted parts fold to lower case, as in SQL.
    ///
    /// ```
    /// use steep_protocol::TableName;
    ///
    /// let table = TableName::parse_typed("Sales.\"Order Lines\"")?;
    /// assert_eq!(table.quoted(), "\"sales\".\"Order Lines\"");
    /// # Ok::<(), steep_protocol::InvalidName>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidName`] if it is not one or two well-formed names.
    pub fn parse_typed(text: &str) -> Result<Self, InvalidName> {
        let bad = || InvalidName::NotATable(text.chars().take(160).collect());
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = take_typed_part(rest).ok_or_else(bad)?;
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return Err(bad()),
            }
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(table), None, None) => Self::new("public", table),
            (Some(schema), Some(table), None) => Self::new(schema, table),
            _ => Err(bad()),
        }
    }

    /// `"schema"."table"`: safe in any SQL text.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", self.schema.quoted(), self.table.quoted())
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.schema, self.table))
    }
}

/// One part of a typed name, and the rest.
fn take_typed_part(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (part, rest) = text.split_at(end);
        let plain = !part.is_empty() && !part.contains(|c: char| c == '"' || c.is_whitespace());
        return plain.then(|| (part.to_lowercase(), rest));
    };
    let mut part = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            part.push(c);
        } else if quoted[at + 1..].starts_with('"') {
            part.push('"');
            chars.next();
        } else {
            return Some((part, &quoted[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quote_in_a_name_cannot_end_it() {
        let name = Identifier::parse("a\"; DROP TABLE x; --").unwrap();
        assert_eq!(name.quoted(), "\"a\"\"; DROP TABLE x; --\"");
    }

    #[test]
    fn typed_names_fold_and_quote_as_sql_does() {
        let cases = [
            ("Orders", "public", "orders"),
            ("Sales.Orders", "sales", "orders"),
            ("\"Sales\".\"Or.ders\"", "Sales", "Or.ders"),
            ("\"a\"\"b\".c", "a\"b", "c"),
            ("größe.tabelle", "größe", "tabelle"),
        ];
        for (typed, schema, table) in cases {
            assert_eq!(
                TableName::parse_typed(typed).unwrap(),
                TableName::new(schema, table).unwrap()
            );
        }
        for bad in ["", ".", "a.", ".a", "a.b.c", "\"a", "a\"b", "\"\".x", "a b"] {
            assert!(TableName::parse_typed(bad).is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn a_quoted_name_reads_back_as_itself(schema in "[^\0]{1,15}", table in "[^\0]{1,15}") {
            let name = TableName::new(schema, table).unwrap();
            prop_assert_eq!(TableName::parse_typed(&name.quoted()).unwrap(), name);
        }

        #[test]
        fn any_text_is_a_table_name_or_an_error(text: String) {
            let _ = TableName::parse_typed(&text);
        }
    }
}
