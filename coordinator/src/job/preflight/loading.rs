//! What loading rows and applying changes depends on: `search_path` of functions, settings that affect
//! values, objects named in columns, rows in tables of extensions.

use steep_protocol::NodeId;
use steep_protocol::message::facts::{
    Finding, LoadingFacts, SearchPathNeed, SettingDifference, SettingScope, Severity, Stops,
};

use super::text::{all_names, names};
use super::{Pair, Text, finding, info, warning};

/// Most statements in one finding.
const STATEMENTS: usize = 10;

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    // With existing tables, the target's own functions run.
    let (node, facts) = if pair.schema_is_created() {
        (&pair.spec.source, &pair.source.loading)
    } else {
        (&pair.spec.target, &pair.target.loading)
    };
    for stops in [Stops::Rows, Stops::PerhapsRows, Stops::Index] {
        findings.extend(search_path(node, facts, stops));
    }
    findings.extend(taken_over(pair));
    findings.extend(settings(pair));
    findings.extend(left_settings(pair));
    if !pair.is_restored() {
        findings.extend(naming_columns(pair));
        findings.extend(extension_rows(pair));
    }
}

fn search_path(node: &NodeId, facts: &LoadingFacts, stops: Stops) -> Option<Finding> {
    let needs: Vec<&SearchPathNeed> = facts
        .search_path
        .iter()
        .filter(|need| need.stops == stops)
        .collect();
    if needs.is_empty() {
        return None;
    }
    let (severity, code, why) = match stops {
        Stops::Rows => (
            Severity::Error,
            "search_path_needed",
            "rows are loaded and changes are applied with an empty search_path, PostgreSQL's own apply worker's too: such a function fails there on the first row, and replication stops",
        ),
        Stops::PerhapsRows => (
            Severity::Warning,
            "search_path_unsure",
            "rows are loaded and changes are applied with an empty search_path; these functions set one themselves, which may or may not be before they need it",
        ),
        Stops::Index => (
            Severity::Warning,
            "search_path_index",
            "indexes are built with an empty search_path: these cannot be built, and will be missing on the target",
        ),
    };
    let described: Vec<String> = needs
        .iter()
        .map(|need| {
            format!(
                "{} does not qualify {} and is used by {}",
                need.function,
                names(&need.names),
                names(&need.used_by)
            )
        })
        .collect();
    let mut statements: Vec<String> = needs
        .iter()
        .take(STATEMENTS)
        .map(|need| {
            format!(
                "ALTER FUNCTION {} SET search_path = {}",
                need.function, need.schemas
            )
        })
        .collect();
    if needs.len() > STATEMENTS {
        statements.push("and so on".to_owned());
    }
    let text = Text::new(
        format!(
            "functions look for names in search_path: {}",
            all_names(&described)
        ),
        why,
        format!(
            "{}; or qualify the names in their bodies",
            statements.join("; ")
        ),
    );
    Some(finding(severity, code, node, text))
}

/// Whether the job sets it on the target.
fn is_taken_over(pair: &Pair<'_>, difference: &SettingDifference) -> bool {
    let scope = match difference.scope {
        SettingScope::Database => pair.target.owns_database || pair.target.server.superuser,
        SettingScope::RoleInDatabase(_) => pair.target.server.superuser,
        SettingScope::Server | SettingScope::Role(_) => false,
    };
    pair.schema_is_created() && scope && difference.carried && !difference.own
}

fn taken_over(pair: &Pair<'_>) -> Option<Finding> {
    let all = pair.target.settings.iter();
    let taken: Vec<String> = all
        .filter(|d| is_taken_over(pair, d))
        .map(|d| d.what.clone())
        .collect();
    (!taken.is_empty()).then(|| {
        info(
            "settings_taken_over",
            &pair.spec.target,
            Text::new(
                format!(
                    "the source's database has settings that this one lacks: {}",
                    all_names(&taken)
                ),
                "values that are computed from rows may follow them, so they are set here too, and reset if the job is cancelled",
                "nothing, unless this node should differ: then change them once it is synchronized",
            ),
        )
    })
}

/// Settings that stay different and may affect values. They cannot if values are computed from rows by
/// built-in immutable functions only.
fn settings(pair: &Pair<'_>) -> Option<Finding> {
    let sensitive = &pair.source.loading.sensitive;
    let differing: Vec<&SettingDifference> = pair
        .target
        .settings
        .iter()
        .filter(|d| d.carried && d.name != "search_path" && !is_taken_over(pair, d))
        .collect();
    if differing.is_empty() || sensitive.is_empty() {
        return None;
    }
    let described: Vec<String> = differing.iter().map(|d| d.what.clone()).collect();
    let statements: Vec<&str> = differing
        .iter()
        .map(|d| d.statement.as_str())
        .filter(|statement| !statement.is_empty())
        .take(STATEMENTS)
        .collect();
    Some(warning(
        "settings_differ",
        &pair.spec.target,
        Text::new(
            format!(
                "settings differ from the source's: {}",
                all_names(&described)
            ),
            format!(
                "rows are loaded with the source's settings, but PostgreSQL applies later changes with this server's, under which these may compute other values or refuse rows: {}",
                names(sensitive)
            ),
            format!("{} on this node", statements.join("; ")),
        ),
    ))
}

fn left_settings(pair: &Pair<'_>) -> Option<Finding> {
    let all = pair.target.settings.iter();
    let left: Vec<String> = all
        .filter(|d| !d.carried && !matches!(d.scope, SettingScope::Server))
        .map(|d| d.what.clone())
        .collect();
    (!left.is_empty() && pair.schema_is_created()).then(|| {
        info(
            "settings_left",
            &pair.spec.target,
            Text::new(
                format!(
                    "settings of the source's database or roles that are not taken over: {}",
                    all_names(&left)
                ),
                "they change no value, and suit the source's machine",
                "ALTER DATABASE or ALTER ROLE … SET them here if applications rely on them",
            ),
        )
    })
}

fn naming_columns(pair: &Pair<'_>) -> Option<Finding> {
    let columns = &pair.source.loading.naming_columns;
    (!columns.is_empty()).then(|| {
        info(
            "object_names",
            &pair.spec.source,
            Text::new(
                format!("columns hold names of objects or roles: {}", names(columns)),
                "such values are copied as names, since their numbers mean other objects on the target; a row that names what the target does not have is refused, in the copy and later",
                "make sure that what they name exists there too, roles and objects of excluded schemas included, or change the columns' type to text",
            ),
        )
    })
}

fn extension_rows(pair: &Pair<'_>) -> Option<Finding> {
    let tables = &pair.source.loading.extension_rows;
    if tables.is_empty() {
        return None;
    }
    let what = format!("tables of extensions hold rows of users: {}", names(tables));
    let (why, fix) = if pair.schema_is_created() {
        (
            "they are copied once, with the schema, as pg_dump would; later changes of them are not replicated",
            "make such changes on both nodes",
        )
    } else {
        (
            "they are neither copied to a target that has its tables nor replicated; rows that refer to them will refer to nothing",
            "take them over by hand: pg_dump --data-only --table each of them on the source",
        )
    };
    let text = Text::new(what, why, fix);
    Some(warning("extension_rows", &pair.spec.source, text))
}
