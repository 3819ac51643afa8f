//! A database of everything that is hard to copy: every kind of column, name and object that a
//! replica must have exactly and that a careless copier breaks.

use anyhow::Result;

use crate::pg::Database;

const ROLES: &str = include_str!("sql/hostile_roles.sql");
const OBJECTS: &str = include_str!("sql/hostile.sql");

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

/// Creates everything; needs the roles.
///
/// # Errors
/// What the server said.
pub fn create(database: &Database, large: Large) -> Result<()> {
    // Whether XML works depends on how the server was built, and can only be tried.
    let xml = database.sql("SELECT '<a/>'::xml").is_ok();
    let variables = [
        ("bytes", (large.megabytes * 1_000_000).to_string()),
        ("xml", i32::from(xml).to_string()),
    ];
    database.sql_with(OBJECTS, &variables).map(drop)
}
