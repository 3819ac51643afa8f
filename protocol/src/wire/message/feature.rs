//! Features of a schema that not every version or build of PostgreSQL has.

use serde::{Deserialize, Serialize};

/// A feature that a server needs to create an object.
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
    /// A table partitioned by hash of an enum: the hash depends on the labels' oids in that
    /// database.
    EnumHashPartition,
}
