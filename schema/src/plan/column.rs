//! Columns of tables that both sides have.

use steep_protocol::TableName;
use steep_protocol::message::schema::{
    Change, ColumnModel, ColumnValue, Identity, SchemaDifference,
};

use super::table::{column_sql, is_generated};
use super::{Planner, Stage};

impl Planner<'_> {
    pub(super) fn alter_column(&mut self, difference: &SchemaDifference) {
        let (Some(table), Some(name)) = (&difference.table, &difference.name) else {
            return;
        };
        if self.comes_from_above(table, difference) {
            return;
        }
        let find = |schema: &'_ crate::Schema, name: &str| {
            let columns = schema.table(table).map(|t| t.columns.as_slice());
            let found = columns
                .unwrap_or_default()
                .iter()
                .find(|c| c.name.as_str() == name);
            found.cloned()
        };
        let wanted = find(self.source, name);
        match (difference.change, wanted) {
            (Change::Order, _) => self.tolerate(difference),
            (Change::Missing, Some(wanted)) => {
                let sql = format!("ADD COLUMN {}", column_sql(&wanted));
                self.on_table(table, sql);
            }
            (Change::Extra, _) => {
                if let Some(extra) = find(self.target, name) {
                    self.drop_column(table, &extra);
                }
            }
            (Change::Renamed, Some(wanted)) => self.rename(table, &wanted, difference),
            (_, Some(wanted)) => {
                // Where it has another name there, it is alike in all else.
                if let Some(found) = find(self.target, name) {
                    self.alter_aspect(table, &wanted, &found, difference);
                }
            }
            (_, None) => self.give_up(difference),
        }
    }

    fn on_table(&mut self, table: &TableName, what: String) {
        let sql = format!("ALTER TABLE {} {what}", table.quoted());
        self.add(Stage::Columns, sql);
    }

    fn drop_column(&mut self, table: &TableName, column: &ColumnModel) {
        let sql = format!(
            "ALTER TABLE {} DROP COLUMN {}",
            table.quoted(),
            column.name.quoted()
        );
        if is_generated(column) {
            self.add(Stage::Columns, sql);
        } else {
            let what = format!("the values of column {} of {table}", column.name);
            self.add_losing(Stage::Columns, table, sql, what);
        }
    }

    /// The remote definition begins with the name that the column has there.
    fn rename(&mut self, table: &TableName, wanted: &ColumnModel, difference: &SchemaDifference) {
        let columns = self.target.table(table).map(|t| t.columns.as_slice());
        let old = columns
            .unwrap_or_default()
            .iter()
            .find(|column| crate::columns::line(column) == difference.remote)
            .map(|column| column.name.quoted());
        match old {
            Some(old) => {
                self.on_table(
                    table,
                    format!("RENAME COLUMN {old} TO {}", wanted.name.quoted()),
                );
            }
            None => self.give_up(difference),
        }
    }

    fn alter_aspect(
        &mut self,
        table: &TableName,
        wanted: &ColumnModel,
        found: &ColumnModel,
        difference: &SchemaDifference,
    ) {
        let column = wanted.name.quoted();
        match difference.change {
            Change::Type | Change::Collation => {
                // One statement does both; said with the first.
                let both =
                    wanted.type_name != found.type_name && wanted.collation != found.collation;
                if !(both && difference.change == Change::Collation) {
                    self.retype(table, wanted, found);
                }
            }
            Change::Nullability => {
                let verb = if wanted.not_null { "SET" } else { "DROP" };
                self.on_table(table, format!("ALTER COLUMN {column} {verb} NOT NULL"));
            }
            Change::Default => match &wanted.value {
                ColumnValue::Default(value) => {
                    self.on_table(table, format!("ALTER COLUMN {column} SET DEFAULT {value}"));
                }
                _ => self.on_table(table, format!("ALTER COLUMN {column} DROP DEFAULT")),
            },
            Change::Identity => self.identify(table, wanted, found),
            Change::Generation => self.regenerate(table, wanted, found),
            Change::Missing
            | Change::Extra
            | Change::Renamed
            | Change::Order
            | Change::Definition => self.give_up(difference),
        }
    }

    fn retype(&mut self, table: &TableName, wanted: &ColumnModel, found: &ColumnModel) {
        if is_generated(wanted) || is_generated(found) {
            return self.make_anew(table, wanted, found);
        }
        let column = wanted.name.quoted();
        let kind = &wanted.type_name;
        // A default may not be castable where the values are.
        let keeps_default = matches!(found.value, ColumnValue::Default(_));
        if keeps_default {
            self.on_table(table, format!("ALTER COLUMN {column} DROP DEFAULT"));
        }
        let collation = wanted.collation.as_ref();
        let collation = collation.map_or_else(String::new, |c| format!(" COLLATE {c}"));
        let sql = format!(
            "ALTER TABLE {} ALTER COLUMN {column} SET DATA TYPE {kind}{collation} USING {column}::{kind}",
            table.quoted()
        );
        if holds_all(&wanted.type_name, &found.type_name) {
            self.add(Stage::Columns, sql);
        } else {
            let what = format!(
                "what of column {} of {table} does not fit {kind} ({} now)",
                wanted.name, found.type_name
            );
            self.add_losing(Stage::Columns, table, sql, what);
        }
        // Where the default differs as well, its own difference sets it.
        if keeps_default
            && wanted.value == found.value
            && let ColumnValue::Default(value) = &wanted.value
        {
            self.on_table(table, format!("ALTER COLUMN {column} SET DEFAULT {value}"));
        }
    }

    fn identify(&mut self, table: &TableName, wanted: &ColumnModel, found: &ColumnModel) {
        let column = wanted.name.quoted();
        let how = |identity| match identity {
            Identity::Always => "ALWAYS",
            Identity::ByDefault | Identity::No => "BY DEFAULT",
        };
        let what = match (found.identity, wanted.identity) {
            (_, Identity::No) => "DROP IDENTITY".to_owned(),
            (Identity::No, identity) => {
                // An identity wants a column without a default that refuses NULL.
                if matches!(found.value, ColumnValue::Default(_)) {
                    self.on_table(table, format!("ALTER COLUMN {column} DROP DEFAULT"));
                }
                if !found.not_null {
                    self.on_table(table, format!("ALTER COLUMN {column} SET NOT NULL"));
                }
                format!("ADD GENERATED {} AS IDENTITY", how(identity))
            }
            (_, identity) => format!("SET GENERATED {}", how(identity)),
        };
        self.on_table(table, format!("ALTER COLUMN {column} {what}"));
    }

    fn regenerate(&mut self, table: &TableName, wanted: &ColumnModel, found: &ColumnModel) {
        let column = wanted.name.quoted();
        match (&wanted.value, &found.value) {
            (ColumnValue::Nothing | ColumnValue::Default(_), ColumnValue::Stored(_)) => {
                self.on_table(table, format!("ALTER COLUMN {column} DROP EXPRESSION"));
                if let ColumnValue::Default(value) = &wanted.value {
                    self.on_table(table, format!("ALTER COLUMN {column} SET DEFAULT {value}"));
                }
            }
            _ => self.make_anew(table, wanted, found),
        }
    }

    /// Once, whatever number of differences asks for it.
    fn make_anew(&mut self, table: &TableName, wanted: &ColumnModel, found: &ColumnModel) {
        let add = format!(
            "ALTER TABLE {} ADD COLUMN {}",
            table.quoted(),
            column_sql(wanted)
        );
        if self
            .staged
            .iter()
            .any(|(_, statement)| statement.sql == add)
        {
            return;
        }
        self.drop_column(table, found);
        self.add(Stage::Columns, add);
    }
}

/// Whether every value of the type `from` is one of the type `to`, the same to a reader. Only what is
/// certain; of others it is said that values may be lost.
fn holds_all(to: &str, from: &str) -> bool {
    let length = |kind: &str, name: &str| -> Option<u32> {
        kind.strip_prefix(name)?
            .strip_prefix('(')?
            .strip_suffix(')')?
            .parse()
            .ok()
    };
    let numeric = |kind: &str| -> Option<(i32, i32)> {
        let inner = kind.strip_prefix("numeric(")?.strip_suffix(')')?;
        let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
        Some((precision.parse().ok()?, scale.parse().ok()?))
    };
    const VARCHAR: &str = "character varying";
    if to == from {
        return true;
    }
    let integers = ["smallint", "integer", "bigint"];
    if let Some(at) = integers.iter().position(|kind| *kind == from) {
        return integers[at..].contains(&to) || to == "numeric";
    }
    if from == "real" {
        return to == "double precision";
    }
    if let (Some(to), Some(from)) = (numeric(to), numeric(from)) {
        return to.1 >= from.1 && to.0 - to.1 >= from.0 - from.1;
    }
    if numeric(from).is_some() {
        return to == "numeric";
    }
    let varying = from == VARCHAR || length(from, VARCHAR).is_some();
    match (to, length(to, VARCHAR), length(from, VARCHAR)) {
        ("text" | VARCHAR, ..) => varying || from == "text",
        (_, Some(to), Some(from)) => to >= from,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::holds_all;

    #[test]
    fn only_what_is_certain_loses_nothing() {
        for (from, to) in [
            ("integer", "bigint"),
            ("smallint", "integer"),
            ("integer", "numeric"),
            ("character varying(10)", "character varying(20)"),
            ("character varying(10)", "text"),
            ("text", "character varying"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric(10,2)", "numeric"),
            ("real", "double precision"),
        ] {
            assert!(holds_all(to, from), "{from} to {to}");
        }
        for (from, to) in [
            ("bigint", "integer"),
            ("text", "character varying(10)"),
            ("character varying(20)", "character varying(10)"),
            ("numeric(10,2)", "numeric(10,3)"),
            ("numeric(10,2)", "numeric(10,1)"),
            ("double precision", "real"),
            ("timestamp with time zone", "date"),
            ("text", "jsonb"),
        ] {
            assert!(!holds_all(to, from), "{from} to {to}");
        }
    }
}
