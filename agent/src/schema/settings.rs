//! Settings of the source's database, carried over where the job creates the schema: values computed from
//! rows are then the same whoever writes them, PostgreSQL's apply worker included.
//!
//! A value never appears in a statement's text, since applications keep keys in their own settings. What
//! undoes it is stored in the same transaction (G6).

use steep_protocol::message::facts::{Finding, SettingScope};
use steep_protocol::message::peer::DatabaseSetting;
use steep_protocol::{Fault, JobId};

use super::batch::is_of_the_statement;
use crate::node::connection::Conn;
use crate::pg::catalog::{alter, is_carried, quoted, read_settings};
use crate::pg::{PgError, literal};
use crate::task::Task;

/// The stage number of undo statements in `steep_repl.deferred_objects`; no stage that is built.
const UNDONE: i16 = 100;

/// Changes where quoted text ends, and so what statements of other programs do: never carried over.
const STRINGS: &str = "standard_conforming_strings";

/// Skips, and reports, what the target's database sets itself or the role may not set.
pub(crate) async fn carry_over(
    task: &Task,
    conn: &Conn,
    source: &[DatabaseSetting],
) -> Result<Vec<Finding>, Fault> {
    let here = read_settings(&conn.session).await;
    let here = here.map_err(|error| conn.fault(&error))?;
    let sql = "SELECT current_database()::text, ARRAY(SELECT rolname::text FROM pg_roles)";
    let row = conn.row(sql, &[]).await?;
    let (database, roles): (String, Vec<String>) = (row.get(0), row.get(1));
    let mut left = Vec::new();
    for wanted in source.iter().filter(|s| is_carried(&s.name)) {
        match &wanted.scope {
            SettingScope::Database => {}
            SettingScope::RoleInDatabase(role) if roles.contains(role) => {}
            SettingScope::RoleInDatabase(_) | SettingScope::Role(_) | SettingScope::Server => {
                continue;
            }
        }
        if shadows_catalog(wanted) {
            left.push(format!(
                "{} (it names pg_catalog after other schemas, whose operators would replace PostgreSQL's own)",
                wanted.name
            ));
            continue;
        }
        if wanted.name.eq_ignore_ascii_case(STRINGS) {
            left.push(format!(
                "{STRINGS} (with it off, quoted text in statements of other programs ends elsewhere)"
            ));
            continue;
        }
        let own = here
            .iter()
            .find(|s| s.name.eq_ignore_ascii_case(&wanted.name) && s.scope == wanted.scope);
        match own {
            Some(own) if own.value == wanted.value => {}
            Some(_) => left.push(format!("{} (has a value of its own here)", wanted.name)),
            None => match set(task, conn, wanted, &database).await {
                Ok(()) => {}
                Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
                    let code = error.sqlstate().map_or("", |code| code.code());
                    left.push(format!("{} (SQLSTATE {code})", wanted.name));
                }
                Err(error) => return Err(conn.fault(&error)),
            },
        }
    }
    if left.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![conn.warning(
        "settings_not_taken_over",
        format!("settings of the source's database are not set here: {}", left.join(", ")),
        "rows are loaded under them; what is computed when changes are applied follows this server's settings",
        "ALTER DATABASE … SET them here as its owner or a superuser, if values that are computed from rows follow them",
    )])
}

/// Whether a `search_path` finds objects of other schemas before those of PostgreSQL.
fn shadows_catalog(wanted: &DatabaseSetting) -> bool {
    let path = wanted.name.eq_ignore_ascii_case("search_path");
    let mut schemas = wanted.value.expose().split(',');
    path && schemas
        .position(|schema| schema.trim().trim_matches('"') == "pg_catalog")
        .is_some_and(|at| at > 0)
}

async fn set(
    task: &Task,
    conn: &Conn,
    wanted: &DatabaseSetting,
    database: &str,
) -> Result<(), PgError> {
    let Some(alter) = alter(&wanted.scope, database) else {
        return Ok(());
    };
    let name = quoted(&wanted.name);
    let undo = literal(&format!("{alter} RESET {name}"));
    let work = async {
        conn.attempt(&format!(
            "BEGIN; INSERT INTO steep_repl.deferred_objects (job, ord, stage, kind, create_sql, state)
             SELECT '{job}', coalesce(max(ord) + 1, 0), {UNDONE}, 'other', {undo}, 'done'
             FROM steep_repl.deferred_objects WHERE job = '{job}'",
            job = task.job
        ))
        .await?;
        // From here to the end of the transaction the value holds, and may be a search_path with operators of others:
        // only statements follow that look up nothing by name.
        let sql = "SELECT pg_catalog.set_config($1, $2, true)";
        conn.fetch(sql, &[&wanted.name, &wanted.value.expose()])
            .await?;
        conn.attempt(&format!("{alter} SET {name} FROM CURRENT; COMMIT"))
            .await
    };
    let outcome = work.await;
    if outcome.is_err() {
        conn.roll_back().await?;
    }
    outcome
}

/// Undoes what the job has set.
pub(crate) async fn take_back(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let sql = "SELECT create_sql FROM steep_repl.deferred_objects WHERE job = $1 AND stage = $2";
    for row in conn.rows(sql, &[&job.to_string(), &UNDONE]).await? {
        let undo: &str = row.get(0);
        match conn.attempt(undo).await {
            Ok(()) => {}
            // The role is gone, or the agent's rights have changed: no row is lost by it.
            Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
                tracing::warn!(job_id = %job, statement = undo, %error, "a setting is left");
            }
            Err(error) => return Err(conn.fault(&error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::peer::Secret;

    use super::*;

    #[test]
    fn a_search_path_with_the_catalog_behind_others_is_found() {
        let shadows = |name: &str, value: &str| {
            shadows_catalog(&DatabaseSetting {
                name: name.to_owned(),
                value: Secret::new(value.to_owned()),
                scope: SettingScope::Database,
            })
        };
        for path in [
            "evil, pg_catalog, public",
            "a,\"pg_catalog\"",
            "a, b ,pg_catalog",
        ] {
            assert!(shadows("search_path", path), "{path}");
        }
        for path in ["a, public", "pg_catalog, a", "", "\"$user\", public"] {
            assert!(!shadows("Search_Path", path), "{path}");
        }
        assert!(!shadows("app.path", "a, pg_catalog"));
    }
}
