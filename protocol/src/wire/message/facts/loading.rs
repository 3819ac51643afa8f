//! What rows need while they are loaded and while changes are applied: functions that find the
//! names they use, settings that affect values, objects referenced from columns, users' rows in
//! tables of extensions.

use serde::{Deserialize, Serialize};

use super::Listed;

/// Facts about one server's database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadingFacts {
    /// Functions that run for rows and look up names in `search_path`, at most
    /// [`crate::limits::LISTED_MAX`].
    pub search_path: Vec<SearchPathNeed>,
    /// Checks, domains, generated columns and partition keys whose result may depend on a setting.
    pub sensitive: Listed,
    /// Columns that refer to objects by name or oid (`regclass` and the like).
    pub naming_columns: Listed,
    /// Tables and sequences of extensions with users' rows, and how many: `pg_dump` includes them.
    pub extension_rows: Listed,
    /// Immutable functions of extensions that were altered after their creation, and on which
    /// something depends that requires immutability; at most [`crate::limits::LISTED_MAX`].
    pub altered: Vec<AlteredFunction>,
}

/// A function of an extension that differs from the one in the extension's script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlteredFunction {
    /// The function with its arguments, quoted as SQL.
    pub function: String,
    /// Its extension, quoted.
    pub extension: String,
    /// The extension's schema, quoted.
    pub schema: String,
    /// Whether the change is certain: not explained by grants or a new owner.
    pub sure: bool,
    /// Generated columns and partition keys that call it.
    pub tables: Listed,
    /// Indexes that call it.
    pub indexes: Listed,
}

/// A function that needs a `search_path`; COPY and the apply worker have an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchPathNeed {
    /// The function with its arguments, quoted as SQL.
    pub function: String,
    /// The names that it does not qualify.
    pub names: Listed,
    /// Their schemas, quoted and joined.
    pub schemas: String,
    /// What runs it.
    pub used_by: Listed,
    /// What fails without it.
    pub stops: Stops,
}

/// What fails if a function does not find a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stops {
    /// An index cannot be built.
    Index,
    /// Perhaps no row can be written: the function mentions `search_path` itself.
    PerhapsRows,
    /// No row that runs it can be written.
    Rows,
}

/// A setting of the source's database that the target's lacks or has with another value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingDifference {
    /// The difference as a phrase: name, scope, and the values unless secret.
    pub what: String,
    /// The setting.
    pub name: String,
    /// Where the source sets it.
    pub scope: SettingScope,
    /// Whether the target sets it in that place too.
    pub own: bool,
    /// Whether it is copied: it affects values, or is a custom setting.
    pub carried: bool,
    /// The statement that makes it equal, unless the value is secret.
    pub statement: String,
}

/// Where a setting is set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SettingScope {
    /// The server's configuration.
    Server,
    /// `ALTER DATABASE`.
    Database,
    /// `ALTER ROLE … IN DATABASE`.
    RoleInDatabase(String),
    /// `ALTER ROLE`.
    Role(String),
}
