//! A database that is hard to copy: every kind of column, name and object that a replica must have
//! exactly and that a careless copier breaks.

use anyhow::Result;

use crate::pg::Database;

const ROLES: &str = include_str!("sql/hostile_roles.sql");
const OBJECTS: &str = include_str!("sql/hostile.sql");

/// The only table whose rows are not copied: it is unlogged, and preflight says so.
pub const NOT_COPIED: &str = "hostile.unlogged";

/// The size of the largest values.
#[derive(Debug, Clone, Copy)]
pub struct Large {
    /// Size of one bytea and one text value, in MB.
    pub megabytes: u32,
}

/// Creates the roles that own objects and have privileges. Roles belong to a server, so a target
/// needs them too.
///
/// # Errors
/// The server's error.
pub fn create_roles(database: &Database) -> Result<()> {
    database.sql(ROLES).map(drop)
}

/// Creates everything that `target` supports too; needs the roles.
///
/// # Errors
/// The server's error.
pub fn create(database: &Database, target: &Database, large: Large) -> Result<()> {
    // XML support depends on how a server was built, and can only be tested by using it.
    let xml = [database, target]
        .iter()
        .all(|side| side.sql("SELECT '<a/>'::xml").is_ok());
    let variables = [
        ("bytes", (large.megabytes * 1_000_000).to_string()),
        ("xml", i32::from(xml).to_string()),
    ];
    database.sql_with(OBJECTS, &variables).map(drop)
}
