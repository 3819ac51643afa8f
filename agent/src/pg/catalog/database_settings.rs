//! Settings with which sessions of a database begin and that affect values: of the server, the database and
//! its roles.

use std::collections::BTreeSet;

use steep_protocol::Identifier;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{SettingDifference, SettingScope};
use steep_protocol::message::peer::{DatabaseSetting, Secret};

use crate::pg::{Conninfo, PgError, Session, literal};

/// PostgreSQL's settings that change what functions compute, or how their bodies are read.
const DECIDING: [&str; 13] = [
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "bytea_output",
    "default_text_search_config",
    "extra_float_digits",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "standard_conforming_strings",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmlbinary",
];

/// How text is read, by apply workers too: never carried over; preflight checks them here.
const READING: [&str; 2] = ["array_nulls", "xmloption"];

/// Kept by loading sessions: `search_path`, as names are never looked up, and how text of rows is read.
const OURS: [&str; 3] = ["search_path", "lc_monetary", "standard_conforming_strings"];

/// Whether it affects values or is an application's own, and so belongs to the rows.
pub(crate) fn is_carried(name: &str) -> bool {
    decides(name) || name.eq_ignore_ascii_case("search_path") || name.contains('.')
}

fn decides(name: &str) -> bool {
    DECIDING
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name))
}

/// Everything set for the database or a role, and the server configuration's values of settings that affect
/// values. `reset_val` is this role's own, so settings of the role are left out there.
const SETTINGS_SQL: &str = "
WITH made AS (
    SELECT split_part(e.entry, '=', 1) AS name, substr(e.entry, strpos(e.entry, '=') + 1) AS value,
        s.setdatabase <> 0 AS here, r.rolname::text AS role
    FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
    CROSS JOIN LATERAL unnest(s.setconfig) AS e (entry)
    WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
        AND (s.setrole = 0 OR r.rolname IS NOT NULL)
)
SELECT m.name, m.value, m.here, m.role FROM made m
WHERE m.here OR m.role IS NOT NULL
UNION ALL
SELECT s.name, coalesce(s.reset_val, ''), false, NULL FROM pg_settings s
WHERE s.name = ANY ($1) AND NOT EXISTS (SELECT FROM made m WHERE lower(m.name) = lower(s.name)
    AND (m.role IS NULL OR m.role = current_user))
ORDER BY 3 DESC, 4 NULLS FIRST, 1";

/// [`read_settings`] on a connection of its own.
pub(crate) async fn database_settings(
    conninfo: &Conninfo,
) -> Result<Vec<DatabaseSetting>, PgError> {
    let session = Session::connect(conninfo, "settings").await?;
    let settings = read_settings(&session).await?;
    session.give_back().await;
    Ok(settings)
}

/// At most [`LISTED_MAX`], the database's own first.
pub(crate) async fn read_settings(session: &Session) -> Result<Vec<DatabaseSetting>, PgError> {
    let names: Vec<&str> = DECIDING.to_vec();
    let mut found = Vec::new();
    for row in session.query(SETTINGS_SQL, &[&names]).await? {
        let (here, role): (bool, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
        let setting = DatabaseSetting {
            name: row.try_get(0)?,
            value: Secret::new(row.try_get::<_, String>(1)?),
            scope: match (here, role) {
                (true, None) => SettingScope::Database,
                (true, Some(role)) => SettingScope::RoleInDatabase(role),
                (false, None) => SettingScope::Server,
                (false, Some(role)) => SettingScope::Role(role),
            },
        };
        // Of a role's settings in all databases, only those that may affect values matter here.
        let decides = decides(&setting.name) || setting.name.contains('.');
        let matters = !matches!(setting.scope, SettingScope::Role(_)) || decides;
        if matters && found.len() < LISTED_MAX {
            found.push(setting);
        }
    }
    Ok(found)
}

/// The statements by which a loading session takes them over.
pub(crate) fn for_loading(settings: &[DatabaseSetting]) -> Vec<String> {
    let ours = |name: &str| OURS.iter().any(|known| known.eq_ignore_ascii_case(name));
    settings
        .iter()
        .filter(|s| matches!(s.scope, SettingScope::Server | SettingScope::Database))
        .filter(|s| is_carried(&s.name) && !ours(&s.name))
        .map(|s| {
            format!(
                "SELECT pg_catalog.set_config({}, {}, false)",
                literal(&s.name),
                literal(s.value.expose())
            )
        })
        .collect()
}

/// The source's settings that differ here.
pub(crate) fn differences(
    source: &[DatabaseSetting],
    here: &[DatabaseSetting],
    database: &str,
    roles: &BTreeSet<&str>,
) -> Vec<SettingDifference> {
    let mut found = Vec::new();
    let reading = |s: &&DatabaseSetting| READING.iter().any(|r| r.eq_ignore_ascii_case(&s.name));
    for wanted in source.iter().filter(|s| !reading(s)) {
        let same = |s: &&DatabaseSetting| s.name.eq_ignore_ascii_case(&wanted.name);
        let at = |scope: &SettingScope| here.iter().find(|s| same(s) && s.scope == *scope);
        let own = at(&wanted.scope);
        let effective = match &wanted.scope {
            SettingScope::Server | SettingScope::Database => {
                at(&SettingScope::Database).or_else(|| at(&SettingScope::Server))
            }
            SettingScope::RoleInDatabase(role) | SettingScope::Role(role) => {
                if !roles.contains(role.as_str()) {
                    continue;
                }
                own
            }
        };
        if effective.is_some_and(|s| s.value == wanted.value) {
            continue;
        }
        // A value from the server's configuration is told apart from one chosen here.
        if wanted.scope == SettingScope::Server && effective.is_none() {
            continue;
        }
        found.push(difference(wanted, effective, own.is_some(), database));
    }
    found
}

fn difference(
    wanted: &DatabaseSetting,
    have: Option<&DatabaseSetting>,
    own: bool,
    database: &str,
) -> SettingDifference {
    let open = decides(&wanted.name) || wanted.name == "search_path";
    let whose = match &wanted.scope {
        SettingScope::Server => String::new(),
        SettingScope::Database => " of the database".to_owned(),
        SettingScope::RoleInDatabase(role) => format!(" of role {role} in the database"),
        SettingScope::Role(role) => format!(" of role {role}"),
    };
    let mut what = format!("{}{whose}", wanted.name);
    if open {
        let here = have.map_or("not set", |s| s.value.expose());
        what.push_str(&format!(" ({}, here {here})", wanted.value.expose()));
    }
    let value = if open {
        // Names in a path are separated by commas and quoted already.
        match wanted.name.as_str() {
            "search_path" => wanted.value.expose().to_owned(),
            _ => literal(wanted.value.expose()),
        }
    } else {
        "…".to_owned()
    };
    SettingDifference {
        what,
        name: wanted.name.clone(),
        scope: wanted.scope.clone(),
        own,
        carried: is_carried(&wanted.name),
        statement: alter(&wanted.scope, database).map_or(String::new(), |alter| {
            format!("{alter} SET {} = {value}", quoted(&wanted.name))
        }),
    }
}

/// `ALTER DATABASE …` or `ALTER ROLE …` up to the setting; `None` for invalid names.
pub(crate) fn alter(scope: &SettingScope, database: &str) -> Option<String> {
    let name = |text: &str| Identifier::parse(text).ok().map(|name| name.quoted());
    let database = name(database)?;
    Some(match scope {
        SettingScope::Server | SettingScope::Database => format!("ALTER DATABASE {database}"),
        SettingScope::RoleInDatabase(role) => {
            format!("ALTER ROLE {} IN DATABASE {database}", name(role)?)
        }
        SettingScope::Role(role) => format!("ALTER ROLE {}", name(role)?),
    })
}

/// A setting's name, which may have a prefix.
pub(crate) fn quoted(name: &str) -> String {
    let parts = name
        .split('.')
        .filter_map(|part| Identifier::parse(part).ok());
    parts
        .map(|part| part.quoted())
        .collect::<Vec<_>>()
        .join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str, scope: SettingScope) -> DatabaseSetting {
        DatabaseSetting {
            name: name.to_owned(),
            value: Secret::new(value),
            scope,
        }
    }

    #[test]
    fn what_the_source_has_otherwise_is_told_without_the_values_of_applications() {
        use SettingScope::{Database, Role, RoleInDatabase, Server};
        let source = [
            setting("TimeZone", "Asia/Tokyo", Database),
            setting("app.key", "hunter2", Database),
            setting("DateStyle", "ISO, DMY", Server),
            setting("IntervalStyle", "postgres", Server),
            setting("search_path", "a, \"B\"", RoleInDatabase("app".to_owned())),
            setting("TimeZone", "UTC", Role("nobody".to_owned())),
        ];
        let here = [
            setting("TimeZone", "Etc/UTC", Server),
            setting("DateStyle", "ISO, MDY", Server),
            setting("IntervalStyle", "postgres", Server),
        ];
        let found = differences(&source, &here, "shop", &BTreeSet::from(["app"]));
        let told: Vec<_> = found.iter().map(|d| d.what.as_str()).collect();
        assert_eq!(
            told,
            [
                "TimeZone of the database (Asia/Tokyo, here Etc/UTC)",
                "app.key of the database",
                "DateStyle (ISO, DMY, here ISO, MDY)",
                "search_path of role app in the database (a, \"B\", here not set)",
            ]
        );
        assert_eq!(
            found[0].statement,
            "ALTER DATABASE \"shop\" SET \"TimeZone\" = 'Asia/Tokyo'"
        );
        assert_eq!(
            found[1].statement,
            "ALTER DATABASE \"shop\" SET \"app\".\"key\" = …"
        );
        assert!(!format!("{found:?}").contains("hunter2"));
        assert!(differences(&source[..2], &source, "shop", &BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_session_that_loads_keeps_what_text_of_rows_is_read_by() {
        let settings = [
            setting("TimeZone", "Asia/Tokyo", SettingScope::Database),
            setting("search_path", "public", SettingScope::Database),
            setting("lc_monetary", "de_DE", SettingScope::Server),
            setting("work_mem", "1GB", SettingScope::Database),
            setting("TimeZone", "UTC", SettingScope::Role("r".to_owned())),
        ];
        assert_eq!(
            for_loading(&settings),
            ["SELECT pg_catalog.set_config('TimeZone', 'Asia/Tokyo', false)"]
        );
    }
}
