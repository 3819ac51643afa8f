//! What a statement of a schema dump is, as far as its place in a job depends on it. Pure.
//!
//! Reads only the first tokens, in the forms that pg_dump writes; anything unknown is [`Class::Other`],
//! which is run in order and never dropped.

mod tokens;

use steep_protocol::{Identifier, TableName};

use self::tokens::{Cursor, Token, tokens};

/// The stage of a job that runs a deferred statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Indexes and the constraints that are indexes: in parallel, after the rows.
    Indexes,
    /// Indexes of partitioned tables, which hold nothing: one by one, as creating one may lock every
    /// partition.
    Parents,
    /// Attaching, CLUSTER ON, replica identity, statistics. In order.
    IndexDetails,
    /// Added without a check, then checked in parallel.
    ForeignKeys,
    /// Triggers, rules, comments, privileges and the rest. In order.
    Rest,
    /// Checks and domain constraints that rows might not have passed while they were loaded.
    Checks,
    /// With their details, all of a table at once. In order.
    Policies,
    /// Materialised views, which read the rows. In order, at the very end.
    Refresh,
    /// After everything that could fire them. In order.
    EventTriggers,
}

impl Stage {
    /// As stored; says nothing about order.
    pub(crate) fn code(self) -> i16 {
        match self {
            Self::Indexes => 1,
            Self::Parents => 6,
            Self::IndexDetails => 2,
            Self::ForeignKeys => 3,
            Self::Rest => 4,
            Self::Refresh => 5,
            Self::Policies => 7,
            Self::EventTriggers => 8,
            Self::Checks => 9,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// `SET` or the dump's `set_config`.
    Setting {
        name: String,
    },
    Index {
        table: TableName,
        name: String,
    },
    /// A primary key, unique or exclusion constraint.
    Key {
        table: TableName,
        name: String,
    },
    ForeignKey {
        table: TableName,
        name: Identifier,
        /// `ALTER TABLE ONLY`, which pg_dump writes for tables that are not partitioned.
        only: Only,
    },
    /// A detail of an index that exists by then.
    IndexDetail,
    /// `REPLICA IDENTITY USING INDEX`.
    Identity {
        table: TableName,
        index: String,
    },
    Table {
        table: TableName,
    },
    Attach,
    /// Switched on or forced.
    RowSecurity,
    Policy {
        table: TableName,
    },
    PolicyDetail,
    EventTrigger,
    /// Owner, privilege or role: may name a role that this server does not have.
    Privilege,
    Comment,
    Schema,
    Extension,
    /// A publication or subscription, which a copy must not carry over.
    Replication,
    Refresh {
        view: Option<TableName>,
    },
    /// In the post-data section where it needs a primary key.
    MaterializedView {
        view: TableName,
    },
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    Yes,
    No,
}

impl Class {
    /// When a statement of the post-data section runs; `None` where it never does.
    pub(crate) fn stage(&self) -> Option<Stage> {
        match self {
            Self::Setting { .. } | Self::Replication => None,
            Self::Index { .. } | Self::Key { .. } => Some(Stage::Indexes),
            Self::IndexDetail | Self::Identity { .. } => Some(Stage::IndexDetails),
            Self::ForeignKey { .. } => Some(Stage::ForeignKeys),
            Self::Refresh { .. } => Some(Stage::Refresh),
            Self::Policy { .. } | Self::PolicyDetail => Some(Stage::Policies),
            Self::EventTrigger => Some(Stage::EventTriggers),
            Self::Table { .. }
            | Self::Attach
            | Self::RowSecurity
            | Self::Privilege
            | Self::Comment
            | Self::Schema
            | Self::Extension
            | Self::MaterializedView { .. }
            | Self::Other => Some(Stage::Rest),
        }
    }
}

pub(crate) fn classify(statement: &str) -> Class {
    let tokens = tokens(statement);
    let mut at = Cursor(&tokens);
    if at.take(&["SET"]) {
        let name = at.name().unwrap_or_default();
        return Class::Setting { name };
    }
    if at.take(&["SELECT", "pg_catalog"]) && at.mark('.') && at.take(&["set_config"]) {
        return Class::Setting {
            name: String::new(),
        };
    }
    if at.take(&["COMMENT", "ON"]) {
        return match () {
            () if at.take(&["POLICY"]) => Class::PolicyDetail,
            () if at.take(&["EVENT", "TRIGGER"]) => Class::EventTrigger,
            () => Class::Comment,
        };
    }
    if at.take(&["GRANT"]) || at.take(&["REVOKE"]) || at.take(&["ALTER", "DEFAULT", "PRIVILEGES"]) {
        return Class::Privilege;
    }
    if at.take(&["REFRESH", "MATERIALIZED", "VIEW"]) {
        return Class::Refresh { view: at.table() };
    }
    if at.take(&["CREATE"]) {
        return created(at);
    }
    if at.take(&["ALTER"]) {
        return altered(at, statement);
    }
    Class::Other
}

fn created(mut at: Cursor<'_>) -> Class {
    if at.take(&["PUBLICATION"]) || at.take(&["SUBSCRIPTION"]) {
        return Class::Replication;
    }
    if at.take(&["SCHEMA"]) {
        return Class::Schema;
    }
    if at.take(&["EXTENSION"]) {
        return Class::Extension;
    }
    if at.take(&["STATISTICS"]) {
        return Class::IndexDetail;
    }
    if at.take(&["EVENT", "TRIGGER"]) {
        return Class::EventTrigger;
    }
    if at.take(&["POLICY"]) {
        let named = at.name().is_some() && at.take(&["ON"]);
        return match at.table().filter(|_| named) {
            Some(table) => Class::Policy { table },
            None => Class::Other,
        };
    }
    if at.take(&["TABLE"]) || at.take(&["UNLOGGED", "TABLE"]) || at.take(&["FOREIGN", "TABLE"]) {
        return match at.table() {
            Some(table) => Class::Table { table },
            None => Class::Other,
        };
    }
    if at.take(&["MATERIALIZED", "VIEW"]) {
        return match at.table() {
            Some(view) => Class::MaterializedView { view },
            None => Class::Other,
        };
    }
    at.take(&["UNIQUE"]);
    if at.take(&["INDEX"]) {
        let name = at.name();
        if at.take(&["ON"]) {
            at.take(&["ONLY"]);
            if let (Some(name), Some(table)) = (name, at.table()) {
                return Class::Index { table, name };
            }
        }
    }
    Class::Other
}

fn altered(mut at: Cursor<'_>, statement: &str) -> Class {
    let names_owner = || role_after(statement, " OWNER TO ").is_some();
    if at.take(&["PUBLICATION"]) || at.take(&["SUBSCRIPTION"]) {
        return Class::Replication;
    }
    if at.take(&["EVENT", "TRIGGER"]) {
        return Class::EventTrigger;
    }
    if at.take(&["INDEX"]) || at.take(&["STATISTICS"]) {
        return if names_owner() {
            Class::Privilege
        } else {
            Class::IndexDetail
        };
    }
    if at.take(&["TABLE"]) {
        at.take(&["IF", "EXISTS"]);
        let only = if at.take(&["ONLY"]) {
            Only::Yes
        } else {
            Only::No
        };
        if let Some(class) = at.table().and_then(|table| table_changed(at, table, only)) {
            return class;
        }
    }
    if names_owner() {
        Class::Privilege
    } else {
        Class::Other
    }
}

fn table_changed(mut at: Cursor<'_>, table: TableName, only: Only) -> Option<Class> {
    if at.take(&["REPLICA", "IDENTITY", "USING", "INDEX"]) {
        let index = at.name()?;
        return Some(Class::Identity { table, index });
    }
    if at.take(&["CLUSTER", "ON"]) {
        return Some(Class::IndexDetail);
    }
    if at.take(&["ATTACH", "PARTITION"]) {
        return Some(Class::Attach);
    }
    let security = ["ENABLE", "FORCE"]
        .iter()
        .any(|how| at.take(&[how, "ROW", "LEVEL", "SECURITY"]));
    if security {
        return Some(Class::RowSecurity);
    }
    if !at.take(&["ADD", "CONSTRAINT"]) {
        return None;
    }
    let name = at.name()?;
    if at.take(&["FOREIGN", "KEY"]) {
        let name = Identifier::parse(name).ok()?;
        return Some(Class::ForeignKey { table, name, only });
    }
    let key = at.take(&["PRIMARY", "KEY"]) || at.take(&["UNIQUE"]) || at.take(&["EXCLUDE"]);
    key.then_some(Class::Key { table, name })
}

/// The table or sequence that a statement makes, alters, grants or comments on; `None` for all others.
pub(crate) fn subject(statement: &str) -> Option<TableName> {
    let tokens = tokens(statement);
    let mut at = Cursor(&tokens);
    if at.take(&["CREATE"]) {
        at.take(&["UNLOGGED"]);
        return (at.take(&["TABLE"]) || at.take(&["SEQUENCE"])).then(|| at.table())?;
    }
    if at.take(&["ALTER"]) {
        if at.take(&["TABLE"]) {
            at.take(&["ONLY"]);
            return at.table();
        }
        return at.take(&["SEQUENCE"]).then(|| at.table())?;
    }
    if at.take(&["COMMENT", "ON"]) {
        return (at.take(&["TABLE"]) || at.take(&["COLUMN"]) || at.take(&["SEQUENCE"]))
            .then(|| at.table())?;
    }
    if at.take(&["GRANT"]) || at.take(&["REVOKE"]) {
        return granted(at);
    }
    None
}

/// The table that a trigger is made on, or whose triggers or columns are set.
pub(crate) fn detail_of(statement: &str) -> Option<TableName> {
    let tokens = tokens(statement);
    let mut at = Cursor(&tokens);
    if at.take(&["CREATE"]) {
        at.take(&["CONSTRAINT"]);
        if !at.take(&["TRIGGER"]) {
            return None;
        }
        while !at.take(&["ON"]) {
            at.any()?;
        }
        return at.table();
    }
    if !at.take(&["ALTER", "TABLE"]) {
        return None;
    }
    at.take(&["ONLY"]);
    let table = at.table()?;
    if at.take(&["ENABLE"]) || at.take(&["DISABLE"]) {
        at.take(&["ALWAYS"]);
        at.take(&["REPLICA"]);
        return at.take(&["TRIGGER"]).then_some(table);
    }
    if !at.take(&["ALTER"]) {
        return None;
    }
    at.take(&["COLUMN"]);
    at.name()?;
    let set = ["STATISTICS", "STORAGE", "COMPRESSION"];
    set.iter()
        .any(|what| at.take(&["SET", what]))
        .then_some(table)
}

/// What follows the privileges, and their columns, of a `GRANT` or `REVOKE`.
fn granted(mut at: Cursor<'_>) -> Option<TableName> {
    while !at.take(&["ON"]) {
        at.any()?;
    }
    (at.take(&["TABLE"]) || at.take(&["SEQUENCE"])).then(|| at.table())?
}

/// Whether the statement makes `role` the owner of that table or sequence.
pub(crate) fn gives(statement: &str, of: &TableName, to: &str) -> bool {
    given(statement).is_some_and(|(table, role)| table == *of && role == to)
}

/// The table or sequence that the statement gives to an owner, and the owner.
pub(crate) fn given(statement: &str) -> Option<(TableName, String)> {
    let role = role_after(statement, " OWNER TO ")?;
    let of = statement
        .starts_with("ALTER ")
        .then(|| subject(statement))?;
    Some((of?, role))
}

pub(crate) fn is_primary_key(statement: &str) -> bool {
    let tokens = tokens(statement);
    let mut at = Cursor(&tokens);
    if !at.take(&["ALTER", "TABLE"]) {
        return false;
    }
    at.take(&["ONLY"]);
    at.table().is_some()
        && at.take(&["ADD", "CONSTRAINT"])
        && at.name().is_some()
        && at.take(&["PRIMARY", "KEY"])
}

/// The role after the last `keyword` of the statement, if a role's name and only words follow.
fn role_after(statement: &str, keyword: &str) -> Option<String> {
    let at = statement.rfind(keyword)?;
    let rest = tokens(&statement[at + keyword.len()..]);
    let name = Cursor(&rest).name()?;
    let plain = rest.iter().all(|token| !matches!(token, Token::Mark(_)));
    plain.then_some(name)
}

/// The role of a privilege statement, where it can be told.
pub(crate) fn role(statement: &str) -> Option<String> {
    [" OWNER TO ", " TO ", " FROM "]
        .into_iter()
        .find_map(|keyword| role_after(statement, keyword))
}

/// The first line of a statement, shortened, for an error. A schema dump holds no row values, and its first
/// lines name the object.
pub(crate) fn headline(statement: &str) -> String {
    let line = statement.lines().next().unwrap_or_default().trim_end();
    let mut short: String = line.chars().take(160).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
