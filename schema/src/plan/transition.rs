//! Turns one column into another, all aspects at once, since they depend on each other. An identity
//! requires NOT NULL and no default; a default may not be castable where values are; an expression
//! can be dropped but not added.

use steep_protocol::message::schema::{ColumnModel, ColumnValue, Identity};

use super::Stage;
use crate::diff::{aspects, is_generated};
use crate::text::plain;

/// How a column of a table is changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// Alterations, in order.
    Steps(Vec<Step>),
    /// It must be dropped and added again.
    Anew,
}

/// One `ALTER TABLE … ALTER COLUMN`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) stage: Stage,
    /// The text after the column's name in `ALTER COLUMN`.
    pub(super) what: String,
    /// Whether values are cast from a wider type.
    pub(super) narrows: bool,
}

/// Whether the two columns are equal except for their names.
pub(super) fn alike(one: &ColumnModel, other: &ColumnModel) -> bool {
    aspects(one, other, same).is_empty()
}

/// Whether the type or the collation changes.
pub(super) fn retypes(found: &ColumnModel, wanted: &ColumnModel) -> bool {
    !same(&found.type_name, &wanted.type_name) || found.collation != wanted.collation
}

fn same(one: &str, other: &str) -> bool {
    plain(one) == plain(other)
}

/// Plans how to make `found` match `wanted`.
pub(super) fn transition(found: &ColumnModel, wanted: &ColumnModel) -> Transition {
    let mut steps = Steps::default();
    let retypes = retypes(found, wanted);
    if is_generated(wanted) {
        let mut bare = found.clone();
        bare.not_null = wanted.not_null;
        if !alike(&bare, wanted) {
            return Transition::Anew;
        }
        steps.null(found, wanted);
        return Transition::Steps(steps.all);
    }
    match found.value {
        ColumnValue::Virtual(_) => return Transition::Anew,
        ColumnValue::Stored(_) => steps.add(Stage::DropGenerated, "DROP EXPRESSION"),
        ColumnValue::Nothing | ColumnValue::Default(_) => {}
    }
    if found.identity != Identity::No && wanted.identity == Identity::No {
        // Its sequence may have the name of one that is to be created.
        steps.add(Stage::DropIdentities, "DROP IDENTITY");
    }
    let default = |column: &ColumnModel| match &column.value {
        ColumnValue::Default(value) => Some(value.clone()),
        _ => None,
    };
    let (has, wants) = (default(found), default(wanted));
    let keeps = match (&has, &wants) {
        (Some(has), Some(wants)) => !retypes && same(has, wants),
        (None, None) => true,
        _ => false,
    };
    if has.is_some() && !keeps && (retypes || wants.is_none()) {
        steps.add(Stage::Columns, "DROP DEFAULT");
    }
    if retypes {
        let (column, kind) = (wanted.name.quoted(), &wanted.type_name);
        let collation = wanted.collation.as_ref();
        let collation = collation.map_or_else(String::new, |c| format!(" COLLATE {c}"));
        steps.all.push(Step {
            stage: Stage::Columns,
            what: format!("SET DATA TYPE {kind}{collation} USING {column}::{kind}"),
            narrows: !holds_all(kind, &found.type_name),
        });
    }
    steps.null(found, wanted);
    let how = match wanted.identity {
        Identity::Always => "ALWAYS",
        Identity::ByDefault | Identity::No => "BY DEFAULT",
    };
    match (found.identity, wanted.identity) {
        (_, Identity::No) => {}
        (Identity::No, _) => {
            steps.add(Stage::Columns, format!("ADD GENERATED {how} AS IDENTITY"));
        }
        (found, wanted) if found != wanted => {
            steps.add(Stage::Columns, format!("SET GENERATED {how}"));
        }
        _ => {}
    }
    if let Some(value) = wants.filter(|_| !keeps) {
        steps.add(Stage::Columns, format!("SET DEFAULT {value}"));
    }
    Transition::Steps(steps.all)
}

#[derive(Default)]
struct Steps {
    all: Vec<Step>,
}

impl Steps {
    fn add(&mut self, stage: Stage, what: impl Into<String>) {
        self.all.push(Step {
            stage,
            what: what.into(),
            narrows: false,
        });
    }

    fn null(&mut self, found: &ColumnModel, wanted: &ColumnModel) {
        if found.not_null != wanted.not_null {
            let verb = if wanted.not_null { "SET" } else { "DROP" };
            self.add(Stage::Columns, format!("{verb} NOT NULL"));
        }
    }
}

/// Whether every value of type `from` is a value of type `to` with the same meaning. Only if
/// certain; otherwise the plan says that values may be lost.
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
