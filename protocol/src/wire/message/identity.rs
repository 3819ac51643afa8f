//! Replica identities: how the source's tables identify the row of an UPDATE or DELETE. They decide
//! whether the statement succeeds on the source and can be applied on the target.

use serde::{Deserialize, Serialize};

use super::facts::Listed;

/// Tables with equal traits. The types below limit the number of groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityGroup {
    /// Their common traits.
    pub traits: IdentityTraits,
    /// Whether rows were updated or deleted since the server's statistics were reset.
    pub changed: bool,
    /// The tables.
    pub tables: Listed,
}

/// The traits that PostgreSQL checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityTraits {
    /// What the source logs of the old row.
    pub identity: RowIdentity,
    /// The primary key, which the target uses to find rows of a table with `REPLICA IDENTITY FULL`.
    pub primary_key: PrimaryKey,
    /// Whether the table has a stored generated column.
    pub stored_columns: bool,
    /// Whether it has a virtual generated column.
    pub virtual_columns: bool,
    /// Whether every column that is not generated has an equality operator.
    pub comparable: bool,
}

/// `pg_class.relreplident`, and the state of the index it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowIdentity {
    /// The columns of a valid, immediate unique index.
    Key(KeyColumns),
    /// All columns.
    Full,
    /// None.
    Missing(MissingIdentity),
}

/// The columns of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyColumns {
    /// Ordinary columns.
    Ordinary,
    /// Including a generated column.
    Generated,
}

/// Why a table has no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MissingIdentity {
    /// No primary key.
    NoPrimaryKey,
    /// The primary key is DEFERRABLE.
    Deferrable,
    /// `REPLICA IDENTITY NOTHING`.
    Nothing,
    /// The index of `REPLICA IDENTITY USING INDEX` is gone or not valid.
    IndexLost,
}

/// A primary key as the target can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PrimaryKey {
    /// None, or not valid.
    None,
    /// Checked immediately: usable to find rows.
    Immediate(KeyColumns),
    /// Checked at the end of the transaction: not usable to find rows, yet from 17 on the source
    /// must send its columns.
    Deferrable(KeyColumns),
}
