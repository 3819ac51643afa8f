//! Checks that two databases are equal: every row of every table by an order-independent digest,
//! every definition by `pg_dump`, every sequence by its value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;

use crate::command;
use crate::pg::{Database, Installation};

/// The differences between two databases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences(pub Vec<String>);

impl Differences {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Turns any difference into an error.
    ///
    /// # Errors
    /// The differences.
    pub fn none(self) -> Result<()> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(anyhow::anyhow!("{self}"))
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} differences:", self.0.len())?;
        for difference in self.0.iter().take(50) {
            write!(f, "\n  {difference}")?;
        }
        Ok(())
    }
}

/// The contents of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Number of rows.
    pub rows: u64,
    /// Two sums over the rows' hashes: equal for equal multisets of rows in any order, and
    /// different for others except by a collision of 128 bits.
    digest: (String, String),
}

/// The contents of every user table (leaf partitions, not roots) and materialised view, by quoted
/// name.
///
/// # Errors
/// The server's error.
pub fn contents(database: &Database) -> Result<BTreeMap<String, Contents>> {
    // These settings fix the text of a row; the sum of hashes depends on nothing else. With the C
    // collation, a nondeterministic one cannot decide which texts are equal. OFFSET keeps PostgreSQL
    // from turning each row into text twice.
    let sql = format!(
        "SET TimeZone = 'UTC'; SET DateStyle = ISO; SET IntervalStyle = postgres;
         SET bytea_output = hex; SET extra_float_digits = 3; SET row_security = off;
         SET search_path = '';
         SELECT pg_catalog.format(
             'SELECT %L, count(*),
                     coalesce(sum(hashtextextended(body, 1)), 0),
                     coalesce(sum(hashtextextended(body, 2)), 0)
              FROM (SELECT t::text COLLATE \"C\" AS body FROM %s %I.%I AS t OFFSET 0) AS written',
             pg_catalog.format('%I.%I', n.nspname, c.relname),
             CASE WHEN c.relkind = 'r' THEN 'ONLY' ELSE '' END, n.nspname, c.relname)
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE (c.relkind = 'r' OR c.relkind = 'm' AND c.relispopulated) AND {USER_OBJECT}
         ORDER BY 1
         \\gexec"
    );
    let mut tables = BTreeMap::new();
    for row in database.rows(&sql)? {
        if let [name, rows, first, second] = row.as_slice() {
            let digest = (first.clone(), second.clone());
            tables.insert(
                name.clone(),
                Contents {
                    rows: rows.parse()?,
                    digest,
                },
            );
        } else {
            anyhow::bail!("a row of {} columns: {row:?}", row.len());
        }
    }
    Ok(tables)
}

/// Excludes objects of the server, of extensions, of ours, and temporary ones.
const USER_OBJECT: &str = "
    n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'steep_repl')
    AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass
                    AND d.objid = c.oid AND d.deptype = 'e')";

/// Compares all rows of all tables.
///
/// # Errors
/// One side cannot be read.
pub fn rows(left: &Database, right: &Database) -> Result<Differences> {
    rows_except(left, right, &[])
}

/// [`rows`] without the named tables (quoted as `format('%I.%I')` does).
///
/// # Errors
/// As [`rows`].
pub fn rows_except(left: &Database, right: &Database, except: &[&str]) -> Result<Differences> {
    let (left, right) = std::thread::scope(|scope| {
        let right = scope.spawn(|| contents(right));
        let left = contents(left);
        match right.join() {
            Ok(right) => (left, right),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    Ok(differences(&left?, &right?, except))
}

/// Compares what [`contents`] returned, without the named tables.
#[must_use]
pub fn differences(
    left: &BTreeMap<String, Contents>,
    right: &BTreeMap<String, Contents>,
    except: &[&str],
) -> Differences {
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let mut differences = Vec::new();
    for name in names
        .into_iter()
        .filter(|name| !except.contains(&name.as_str()))
    {
        match (left.get(name), right.get(name)) {
            (Some(_), None) => differences.push(format!("{name} is only on the left")),
            (None, _) => differences.push(format!("{name} is only on the right")),
            (Some(a), Some(b)) if a.rows != b.rows => {
                differences.push(format!("{name} has {} rows and {} rows", a.rows, b.rows));
            }
            (Some(a), Some(b)) if a != b => {
                differences.push(format!(
                    "{name} has {} rows on both sides, but they differ",
                    a.rows
                ));
            }
            _ => {}
        }
    }
    Differences(differences)
}

/// Compares the position of every sequence.
///
/// # Errors
/// One side cannot be read.
pub fn sequences(left: &Database, right: &Database) -> Result<Differences> {
    let read = |database: &Database| -> Result<BTreeSet<String>> {
        let sql = format!(
            "SELECT format('SELECT format(''%%s %%s %%s'', %L, last_value, is_called) FROM %I.%I',
                           format('%I.%I', n.nspname, c.relname), n.nspname, c.relname)
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
             WHERE c.relkind = 'S' AND {USER_OBJECT}
             \\gexec"
        );
        Ok(database.rows(&sql)?.into_iter().flatten().collect())
    };
    Ok(either_only(&read(left)?, &read(right)?))
}

/// Compares all definitions, as `pg_dump --schema-only` writes them.
///
/// # Errors
/// One side cannot be dumped.
pub fn schema(left: &Database, right: &Database) -> Result<Differences> {
    schema_with(left, right, &[])
}

/// [`schema`] with more arguments for `pg_dump`, such as `--no-owner`.
///
/// # Errors
/// As [`schema`].
pub fn schema_with(left: &Database, right: &Database, arguments: &[&str]) -> Result<Differences> {
    // The newer pg_dump dumps both, because two versions write the same thing differently.
    let newer = std::cmp::max_by_key(left, right, |side| side.installation().major());
    let left = definitions(left, newer.installation(), arguments)?;
    let right = definitions(right, newer.installation(), arguments)?;
    Ok(either_only(&left, &right))
}

/// All definitions, as `pg_dump --schema-only` writes them, to compare dumps of one database at
/// different times.
///
/// # Errors
/// It cannot be dumped.
pub fn dump(database: &Database) -> Result<String> {
    let dump = written(database, database.installation(), &[])?;
    // Removes psql's restriction key, which is random.
    let lines = dump.lines().filter(|line| !line.starts_with('\\'));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// A dump as a set of statements, because their order does not matter.
fn definitions(
    database: &Database,
    installation: &Installation,
    arguments: &[&str],
) -> Result<BTreeSet<String>> {
    Ok(statements(&written(database, installation, arguments)?))
}

fn written(database: &Database, installation: &Installation, arguments: &[&str]) -> Result<String> {
    let mut dump = database.client_of(installation, "pg_dump");
    dump.args(["--schema-only", "--no-publications", "--no-subscriptions"])
        .args(["--exclude-schema", "steep_repl"])
        .args(arguments);
    command::output(&mut dump)
}

/// `pg_dump` separates objects by comments of the form `-- Name: …`.
fn statements(dump: &str) -> BTreeSet<String> {
    let mut statements = BTreeSet::new();
    let mut current = String::new();
    for line in dump.lines() {
        if line.starts_with("-- Name: ") {
            statements.insert(std::mem::take(&mut current));
        }
        // Versions, session settings and psql's restriction key are not definitions.
        let noise = line.trim().is_empty()
            || line.starts_with("--")
            || line.starts_with("SET ")
            || line.starts_with("SELECT pg_catalog.set_config")
            || line.starts_with('\\');
        if !noise {
            current.push_str(line);
            current.push('\n');
        }
    }
    statements.insert(current);
    statements.remove("");
    statements
}

fn either_only(left: &BTreeSet<String>, right: &BTreeSet<String>) -> Differences {
    let left_only = left
        .difference(right)
        .map(|text| format!("only on the left: {text}"));
    let right_only = right
        .difference(left)
        .map(|text| format!("only on the right: {text}"));
    Differences(left_only.chain(right_only).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_compared_by_statement_and_not_by_order_or_noise() {
        let one = "\\restrict abc\nSET x = 1;\n--\n-- Name: a; Type: TABLE\n--\n\nCREATE TABLE a (\n    i int\n);\n\n-- Name: b; Type: TABLE\nCREATE TABLE b ();\n";
        let two = "\\restrict xyz\n-- Name: b; Type: TABLE\nCREATE TABLE b ();\n-- Name: a; Type: TABLE\nCREATE TABLE a (\n    i int\n);\n";
        assert_eq!(statements(one), statements(two));
        assert_eq!(statements(one).len(), 2);
        let differences = either_only(&statements(one), &statements("-- Name: c\nCREATE TABLE c;"));
        assert_eq!(differences.0.len(), 3);
        assert!(differences.none().is_err());
    }
}
