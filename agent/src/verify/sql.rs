//! The statements that read rows. Pure.
//!
//! Names are quoted, values are literals of a type whose input runs no code of users. Values become text by
//! their type's own output function (`ROW(…)`, `format`): a cast could be a user's function.

use steep_protocol::limits::{VERIFY_ROWS_MAX, VERIFY_VALUE_SHOWN};
use steep_protocol::message::peer::CtidRange;
use steep_protocol::message::verify::{RowKey, RowValues, Seeds, Sieve, Summed};
use steep_protocol::{Identifier, TableName};

use crate::pg::literal;

/// How a table's rows are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    /// The columns in the order of the digest.
    pub(super) columns: Vec<ReadColumn>,
    /// Without any, rows are told apart by their content.
    pub(super) key: Vec<KeyColumn>,
    /// Into which encoding text is brought before it is digested.
    pub(super) encoding: Encoding,
    /// What is summed by bucket.
    pub(super) summed: Summed,
}

/// A column that is digested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadColumn {
    pub(super) name: Identifier,
    pub(super) text: TextForm,
}

/// How a column's value becomes part of the text that is digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextForm {
    /// As its type writes it.
    Output,
    /// `bytea`: its digest, since its text is twice as long and may be too long.
    Digest,
}

/// A column of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyColumn {
    pub(super) name: Identifier,
    /// The type of its literals, as `format_type` writes it.
    pub(super) type_name: String,
    /// The equality of its index, qualified.
    pub(super) equals: String,
}

/// The encoding of digested text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// Of a database without an encoding: its bytes as they are.
    SqlAscii,
}

impl Encoding {
    /// That of a database.
    pub(super) fn of(server: &str) -> Self {
        match server {
            "SQL_ASCII" => Self::SqlAscii,
            _ => Self::Utf8,
        }
    }

    fn literal(self) -> &'static str {
        match self {
            Self::Utf8 => "'UTF8'",
            Self::SqlAscii => "'SQL_ASCII'",
        }
    }
}

impl Reading {
    /// Counts and sums by bucket. What is summed of a digest is a hash, too, since PostgreSQL turns its text into
    /// numbers at almost the cost of making it: where two versions hash differently, all rows are looked at.
    pub(super) fn sums(
        &self,
        leaf: &TableName,
        pages: CtidRange,
        sieve: &Sieve,
        bits: u8,
    ) -> String {
        let (shift, mask) = (shift(sieve), mask(bits));
        let (summed, Seeds([one, other])) = match self.summed {
            Summed::Text(seeds) => (self.row(), seeds),
            Summed::Digest(seeds) => (self.digest(), seeds),
        };
        format!(
            "SELECT (b.k >> {shift}) & {mask}, count(*), sum(hashtextextended(r.h COLLATE \"C\", '{one}'::bigint)), \
             sum(hashtextextended(r.h COLLATE \"C\", '{other}'::bigint)) {from} GROUP BY 1",
            from = self.from(leaf, pages, sieve, &summed)
        )
    }

    /// Digests and keys of rows, one more than fit an answer.
    pub(super) fn rows(&self, leaf: &TableName, pages: CtidRange, sieve: &Sieve) -> String {
        let key = match &self.key[..] {
            [] => ", format('%s %s', t.tableoid::regclass, t.ctid)".to_owned(),
            key => key
                .iter()
                .map(|k| format!(", format('%s', t.{})", k.name.quoted()))
                .collect(),
        };
        format!(
            "SELECT substr(r.h, 1, 32){key} {from} LIMIT {limit}",
            from = self.from(leaf, pages, sieve, &self.digest()),
            limit = VERIFY_ROWS_MAX + 1
        )
    }

    /// The digest of each row that has one of these keys, with the key's place.
    pub(super) fn look_up(&self, table: &str, keys: &[RowKey]) -> String {
        format!(
            "SELECT k.o, substr({}, 1, 32) {}",
            self.digest(),
            self.by_key(table, keys)
        )
    }

    /// For each such row and each column: the key's place, the column's, its digest and its value.
    pub(super) fn columns(&self, table: &str, keys: &[RowKey], values: RowValues) -> String {
        let each = |form: &dyn Fn(&str) -> String| {
            let columns = self.columns.iter().map(|column| {
                let name = format!("t.{}", column.name.quoted());
                format!("CASE WHEN num_nulls({name}) = 0 THEN {} END", form(&name))
            });
            format!("ARRAY[{}]::text[]", columns.collect::<Vec<_>>().join(", "))
        };
        let digest = |name: &str| {
            let text = format!(
                "convert_to(format('%s', {name}), {})",
                self.encoding.literal()
            );
            format!("substr(encode(sha256({text}), 'hex'), 1, 16)")
        };
        let value = |name: &str| match values {
            RowValues::Hidden => "NULL".to_owned(),
            RowValues::Shown => format!("left(format('%s', {name}), {VERIFY_VALUE_SHOWN})"),
        };
        format!(
            "SELECT k.o, c.n, c.d, c.v {from} \
             CROSS JOIN LATERAL unnest({digests}, {values}) WITH ORDINALITY AS c(d, v, n)",
            from = self.by_key(table, keys),
            digests = each(&digest),
            values = each(&value)
        )
    }

    /// Version and digest of each row that has one of these keys, with the key's place.
    pub(super) fn versions(&self, table: &str, keys: &[RowKey]) -> String {
        format!(
            "SELECT {} {}",
            self.version_columns(),
            self.by_key(table, keys)
        )
    }

    /// The same of those that nobody else has locked, which are locked from then on.
    pub(super) fn lock(&self, table: &str, keys: &[RowKey]) -> String {
        format!("{} FOR UPDATE OF t SKIP LOCKED", self.versions(table, keys))
    }

    /// The same, with whether the row's text has at most `longest` bytes, and the columns where it does.
    pub(super) fn fetch(&self, table: &str, keys: &[RowKey], longest: u32) -> String {
        let texts = self.columns.iter().map(|column| {
            let name = format!("t.{}", column.name.quoted());
            (
                format!("octet_length(format('%s', {name}))::bigint"),
                format!(
                    ", CASE WHEN r.fits AND num_nulls({name}) = 0 THEN format('%s', {name}) END"
                ),
            )
        });
        let (lengths, values): (Vec<String>, String) = texts.unzip();
        let length = if lengths.is_empty() {
            "0".to_owned()
        } else {
            lengths.join(" + ")
        };
        format!(
            "SELECT {columns}, r.fits{values} {from} \
             CROSS JOIN LATERAL (SELECT {length} <= {longest} AS fits OFFSET 0) AS r",
            columns = self.version_columns(),
            from = self.by_key(table, keys)
        )
    }

    /// The key's place of each such row, and the value of an expression over it.
    pub(super) fn evaluated(&self, table: &str, keys: &[RowKey], expression: &str) -> String {
        format!("SELECT k.o, {expression} {}", self.by_key(table, keys))
    }

    /// The key's place of each such row, and these columns.
    pub(super) fn values_of(&self, table: &str, keys: &[RowKey], columns: &[KeyColumn]) -> String {
        let columns: String = columns
            .iter()
            .map(|column| {
                let name = format!("t.{}", column.name.quoted());
                format!(", CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END")
            })
            .collect();
        format!("SELECT k.o{columns} {}", self.by_key(table, keys))
    }

    /// Deletes the rows that have these keys.
    pub(super) fn delete(&self, table: &str, keys: &[RowKey]) -> String {
        let (values, matching) = (self.values(keys), self.matching());
        format!("DELETE FROM {table} AS t USING {values} WHERE {matching}")
    }

    /// Inserts rows, `None` being NULL.
    pub(super) fn insert(&self, table: &TableName, rows: &[&[Option<String>]]) -> String {
        let columns = self.columns.iter().map(|column| column.name.quoted());
        let columns = columns.collect::<Vec<_>>().join(", ");
        let value = |value: &Option<String>| match value {
            Some(text) => literal(text),
            None => "NULL".to_owned(),
        };
        let row = |row: &&[Option<String>]| {
            let values: Vec<String> = row.iter().map(value).collect();
            format!("({})", values.join(", "))
        };
        let rows: Vec<String> = rows.iter().map(row).collect();
        format!(
            "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE VALUES {}",
            table.quoted(),
            rows.join(", ")
        )
    }

    fn version_columns(&self) -> String {
        format!(
            "k.o, format('%s %s', t.tableoid, t.ctid), t.xmin, t.xmax, substr({}, 1, 32)",
            self.digest()
        )
    }

    /// The rows of those pages, `b.k` being the hash of the key and `r.h` what is read of the row, computed only where
    /// the row passes the sieve. `OFFSET 0` keeps the planner from computing either twice.
    fn from(&self, leaf: &TableName, pages: CtidRange, sieve: &Sieve, read: &str) -> String {
        let key = match &self.key[..] {
            [] => self.row(),
            key => {
                let columns = key.iter().map(|k| format!("t.{}", k.name.quoted()));
                row(columns)
            }
        };
        let mut passes = String::new();
        let mut shift = 0;
        for level in &sieve.0 {
            let bit = format!("(b.k >> {shift}) & {}", mask(level.bits));
            let wanted: String = level
                .wanted
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let word = if passes.is_empty() { "WHERE" } else { " AND" };
            passes.push_str(&format!(
                "{word} get_bit(decode('{wanted}', 'hex'), {bit}) = 1"
            ));
            shift += level.bits;
        }
        let CtidRange { from, to } = pages;
        let from = from.unwrap_or(0);
        let to = to.map_or_else(String::new, |to| format!(" AND t.ctid < '({to},0)'::tid"));
        format!(
            "FROM ONLY {leaf} AS t \
             CROSS JOIN LATERAL (SELECT hashtextextended({key} COLLATE \"C\", 0) AS k OFFSET 0) AS b \
             CROSS JOIN LATERAL (SELECT {read} AS h {passes} OFFSET 0) AS r \
             WHERE t.ctid >= '({from},0)'::tid{to}",
            leaf = leaf.quoted()
        )
    }

    fn by_key(&self, table: &str, keys: &[RowKey]) -> String {
        let (values, matching) = (self.values(keys), self.matching());
        format!("FROM {values} JOIN {table} AS t ON {matching}")
    }

    /// The keys as a table `k` with their places in `o`.
    fn values(&self, keys: &[RowKey]) -> String {
        let names: String = (0..self.key.len()).map(|at| format!(", k{at}")).collect();
        let rows = keys.iter().enumerate().map(|(place, key)| {
            let values = self.key.iter().zip(&key.0);
            let values: String = values
                .map(|(column, value)| format!(", {}::{}", literal(value), column.type_name))
                .collect();
            format!("({place}{values})")
        });
        let rows = rows.collect::<Vec<_>>().join(", ");
        format!("(VALUES {rows}) AS k(o{names})")
    }

    /// Whether a row `t` has the key `k`.
    fn matching(&self) -> String {
        let equal =
            self.key.iter().enumerate().map(|(at, column)| {
                format!("t.{} {} k.k{at}", column.name.quoted(), column.equals)
            });
        equal.collect::<Vec<_>>().join(" AND ")
    }

    fn digest(&self) -> String {
        let (row, encoding) = (self.row(), self.encoding.literal());
        format!("encode(sha256(convert_to({row}, {encoding})), 'hex')")
    }

    fn row(&self) -> String {
        row(self.columns.iter().map(|column| {
            let name = format!("t.{}", column.name.quoted());
            match column.text {
                TextForm::Output => name,
                TextForm::Digest => format!("sha256({name})"),
            }
        }))
    }
}

/// A record as text, by its columns' output functions.
fn row(columns: impl Iterator<Item = String>) -> String {
    format!("ROW({})::text", columns.collect::<Vec<_>>().join(", "))
}

/// The bits that the levels of a sieve have used.
fn shift(sieve: &Sieve) -> u32 {
    sieve.0.iter().map(|level| u32::from(level.bits)).sum()
}

fn mask(bits: u8) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::verify::SieveLevel;

    use super::*;

    fn name(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    fn reading(keyed: bool) -> Reading {
        let key = KeyColumn {
            name: name("i\"d"),
            type_name: "bigint".to_owned(),
            equals: "OPERATOR(pg_catalog.=)".to_owned(),
        };
        Reading {
            columns: vec![
                ReadColumn {
                    name: name("i\"d"),
                    text: TextForm::Output,
                },
                ReadColumn {
                    name: name("Image"),
                    text: TextForm::Digest,
                },
            ],
            key: if keyed { vec![key] } else { Vec::new() },
            encoding: Encoding::Utf8,
            summed: Summed::Digest(Seeds([7, -8])),
        }
    }

    fn leaf() -> TableName {
        TableName::new("s'p", "t\"; DROP TABLE x; --").unwrap()
    }

    const PAGES: CtidRange = CtidRange {
        from: Some(128),
        to: Some(256),
    };

    fn one_level() -> Sieve {
        Sieve(vec![SieveLevel {
            bits: 4,
            wanted: vec![0x01, 0x80],
        }])
    }

    #[test]
    fn sums_read_a_range_of_pages_and_group_by_bits_of_the_keys_hash() {
        insta::assert_snapshot!(reading(true).sums(&leaf(), PAGES, &Sieve::default(), 10));
        insta::assert_snapshot!(reading(true).sums(&leaf(), CtidRange::ALL, &one_level(), 10));
        insta::assert_snapshot!(reading(false).sums(&leaf(), PAGES, &Sieve::default(), 0));
        let text = Reading {
            summed: Summed::Text(Seeds([7, -8])),
            ..reading(true)
        };
        insta::assert_snapshot!(text.sums(&leaf(), PAGES, &Sieve::default(), 10));
    }

    #[test]
    fn rows_have_their_key_or_their_place() {
        insta::assert_snapshot!(reading(true).rows(&leaf(), PAGES, &one_level()));
        insta::assert_snapshot!(reading(false).rows(&leaf(), PAGES, &one_level()));
    }

    #[test]
    fn keys_are_literals_and_compared_as_their_index_compares_them() {
        let keys = [
            RowKey(vec!["1".to_owned()]),
            RowKey(vec!["2'); --\\".to_owned()]),
        ];
        let table = leaf().quoted();
        insta::assert_snapshot!(reading(true).look_up(&table, &keys));
        insta::assert_snapshot!(reading(true).columns(&table, &keys[..1], RowValues::Shown));
        insta::assert_snapshot!(reading(true).lock(&table, &keys));
        insta::assert_snapshot!(reading(true).fetch(&table, &keys[..1], 1_000));
        insta::assert_snapshot!(reading(true).delete(&table, &keys));
        let row = [Some("it's \\ \"1\"".to_owned()), None];
        insta::assert_snapshot!(reading(true).insert(&leaf(), &[&row, &row]));
        let hidden = reading(true).columns(&table, &keys[..1], RowValues::Hidden);
        assert!(!hidden.contains("left("), "{hidden}");
    }
}
