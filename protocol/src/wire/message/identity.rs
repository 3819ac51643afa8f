//! How the tables of a source name the row that an UPDATE or DELETE is about, as far as it decides
//! whether the statement succeeds on the source and can be applied on the target.

use serde::{Deserialize, Serialize};

use super::facts::Listed;

/// Tables that are alike in all that matters here. The number of groups is bounded by the types below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityGroup {
    /// What they have in common.
    pub traits: IdentityTraits,
    /// Whether their rows have been updated or deleted since the server's statistics began.
    pub changed: bool,
    /// The tables.
    pub tables: Listed,
}

/// What PostgreSQL looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityTraits {
    /// What the source writes of the old row.
    pub identity: RowIdentity,
    /// The primary key, by which the target finds a row of a table with `REPLICA IDENTITY FULL`.
    pub primary_key: PrimaryKey,
    /// Whether the table has a stored generated column.
    pub stored_columns: bool,
    /// Whether it has a virtual generated column.
    pub virtual_columns: bool,
    /// Whether every column that is not generated has an equality operator.
    pub comparable: bool,
}

/// `pg_class.relreplident`, and what has become of the index it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowIdentity {
    /// The columns of a valid, immediate unique index.
    Key(KeyColumns),
    /// All columns.
    Full,
    /// None.
    Missing(MissingIdentity),
}

/// What columns a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyColumns {
    /// Ordinary ones.
    Ordinary,
    /// A generated one among them.
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
    /// The index that `REPLICA IDENTITY USING INDEX` named is gone or not valid.
    IndexLost,
}

/// A primary key as the target would use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PrimaryKey {
    /// There is none, or it is not valid.
    None,
    /// Checked at once: rows are found by it.
    Immediate(KeyColumns),
    /// Checked at the end of the transaction: no row is found by it, and from 17 on the source must send
    /// its columns all the same.
    Deferrable(KeyColumns),
}
