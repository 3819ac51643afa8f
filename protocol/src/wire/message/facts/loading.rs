//! What rows need while they are loaded and while changes are applied: functions that find what they name,
//! settings that decide values, objects that are named by columns, rows that extensions keep for users.

use serde::{Deserialize, Serialize};

use super::Listed;

/// What is true of one server's database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadingFacts {
    /// Functions that rows run and that look for names in `search_path`, at most
    /// [`crate::limits::LISTED_MAX`].
    pub search_path: Vec<SearchPathNeed>,
    /// Checks, domains, generated columns and partition keys whose result may follow a setting.
    pub sensitive: Listed,
    /// Columns that hold names of objects (`regclass` and the like).
    pub naming_columns: Listed,
    /// Tables and sequences of extensions that hold what users put there, with how many rows: what
    /// `pg_dump` takes along though it is an extension's.
    pub extension_rows: Listed,
    /// Immutable functions of extensions that were altered after these were made, and that something
    /// depends on that takes no other; at most [`crate::limits::LISTED_MAX`].
    pub altered: Vec<AlteredFunction>,
}

/// A function of an extension that is not as the extension's script made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlteredFunction {
    /// The function with its arguments, quoted as SQL.
    pub function: String,
    /// Its extension, quoted.
    pub extension: String,
    /// The schema that the extension is in, quoted.
    pub schema: String,
    /// Whether neither grants nor a change of owner explain it.
    pub sure: bool,
    /// Generated columns and partition keys that call it.
    pub tables: Listed,
    /// Indexes that call it.
    pub indexes: Listed,
}

/// A function that needs a `search_path`, where COPY and the apply worker have an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchPathNeed {
    /// The function with its arguments, quoted as SQL.
    pub function: String,
    /// The names that it does not qualify.
    pub names: Listed,
    /// The schemas they are in, quoted and joined.
    pub schemas: String,
    /// What runs it.
    pub used_by: Listed,
    /// What does not work without.
    pub stops: Stops,
}

/// What fails where a function does not find what it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stops {
    /// An index cannot be built.
    Index,
    /// It may be that no row can be written: the function mentions `search_path` itself.
    PerhapsRows,
    /// No row that runs it can be written.
    Rows,
}

/// A setting that the source's database has and the target's has not, or with another value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingDifference {
    /// What differs, ready for a sentence: name, whose, and values where they are no secret.
    pub what: String,
    /// The setting.
    pub name: String,
    /// Where the source has it from.
    pub scope: SettingScope,
    /// Whether the target has a value of its own in that place.
    pub own: bool,
    /// Whether it is one that is taken over: one that decides values, or a custom one.
    pub carried: bool,
    /// The statement that makes it equal, where the value is no secret.
    pub statement: String,
}

/// Where a setting is made.
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
