//! What a schema uses that not every version or build of PostgreSQL has.

use serde::{Deserialize, Serialize};

/// Something that a server must know to make an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Feature {
    /// A column with `COMPRESSION lz4`.
    Lz4,
    /// A collation of the provider `icu`.
    IcuCollation,
    /// A collation of the provider `builtin`.
    BuiltinCollation,
    /// `UNIQUE NULLS NOT DISTINCT`.
    NullsNotDistinct,
    /// `ON DELETE SET NULL (columns)`.
    SetNullColumns,
    /// A view with `security_invoker`.
    SecurityInvoker,
    /// An unlogged sequence.
    UnloggedSequence,
    /// An exclusion constraint of a partitioned table.
    PartitionedExclusion,
    /// A virtual generated column.
    VirtualColumn,
    /// `WITHOUT OVERLAPS` or `PERIOD`.
    WithoutOverlaps,
    /// A constraint that is `NOT ENFORCED`.
    NotEnforced,
    /// A `NOT NULL` constraint that is `NOT VALID`, `NO INHERIT`, or a child's own on an inherited column.
    NotNullDetail,
    /// A collation of the operating system.
    LibcCollation,
    /// A table that is partitioned by hash of an enum, which hashes the numbers that its labels have in
    /// that database.
    EnumHashPartition,
}
