//! A database of everything that is hard to copy: every kind of column, name and object that a
//! replica must have exactly and that a careless copier breaks.

use anyhow::Result;

use crate::pg::Database;

const ROLES: &str = include_str!("sql/hostile_roles.sql");
const OBJECTS: &str = include_str!("sql/hostile.sql");

/// The one table whose rows do not arrive: unlogged tables are neither copied nor replicated, and
/// preflight says so.
pub const NOT_COPIED: &str = "hostile.unlogged";

/// How large the largest values are.
#[derive(Debug, Clone, Copy)]
pub struct Large {
    /// Size of one bytea and one text value, in MB.
    pub megabytes: u32,
}

/// Creates the roles that own and are granted the objects. Roles belong to a server, not to a
/// database: a target that shall have the owners needs them too.
///
/// # Errors
/// What the server said.
pub fn create_roles(database: &Database) -> Result<()> {
    database.sql(ROLES).map(drop)
}

/// Creates everything that `target` can hold too; needs the roles.
///
/// # Errors
/// What the server said.
pub fn create(database: &Database, target: &Database, large: Large) -> Result<()> {
    // Whether XML works depends on how a server was built, and can only be tried.
    let xml = [database, target]
        .iter()
        .all(|side| side.sql("SELECT '<a/>'::xml").is_ok());
    let variables = [
        ("bytes", (large.megabytes * 1_000_000).to_string()),
        ("xml", i32::from(xml).to_string()),
    ];
    database.sql_with(OBJECTS, &variables).map(drop)
}
