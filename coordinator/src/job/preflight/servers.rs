//! Versions, primaries and standbys, encodings, collations, clocks, poolers.

use steep_protocol::message::facts::Finding;

use super::text::version;
use super::{End, Pair, Text, error, info, lineage, warning};

/// The oldest version with the TID range scans and slots that the data path needs.
const OLDEST_SUPPORTED: u32 = 140_000;

/// Clocks further apart make times in progress and logs misleading.
const CLOCK_TOLERANCE_SECONDS: f64 = 5.0;

/// Defects that prevent any further facts from being gathered.
pub(super) fn unusable(pair: &Pair<'_>) -> Vec<Finding> {
    let ends = pair.ends();
    ends.iter()
        .flat_map(|end| too_old(end).into_iter().chain(pooler(end)))
        .collect()
}

/// The same for the source alone.
pub(super) fn unusable_source(pair: &Pair<'_>) -> Vec<Finding> {
    let end = pair.source_end();
    too_old(&end).into_iter().chain(pooler(&end)).collect()
}

/// Judges the source alone.
pub(super) fn judge_source(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    findings.extend(standbys(pair));
}

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let same = same_database(pair);
    findings.extend(reading(pair));
    findings.extend(standbys(pair));
    findings.extend(target_older(pair));
    if same.is_none() {
        findings.extend(encoding(pair));
        findings.extend(collation(pair));
        findings.extend(clocks(pair));
    }
    findings.extend(same);
}

fn same_database(pair: &Pair<'_>) -> Option<Finding> {
    lineage::is_same_database(pair).then(|| {
        error(
            "same_database",
            &pair.spec.target,
            Text::new(
                format!(
                    "{} and {} are the same database ({}) of the same server",
                    pair.spec.source, pair.spec.target, pair.source.server.database
                ),
                "a database cannot be a replica of itself: its rows would be copied onto themselves",
                "correct --postgres of one of the two agents",
            ),
        )
    })
}

fn too_old(end: &End<'_>) -> Option<Finding> {
    (end.server.version < OLDEST_SUPPORTED).then(|| {
        error(
            "version_too_old",
            end.node,
            Text::new(
                format!("PostgreSQL is {}", version(end.server.version)),
                "14 is the oldest version that can read a table in ranges and is still maintained",
                "upgrade this server to PostgreSQL 14 or newer",
            ),
        )
    })
}

fn target_older(pair: &Pair<'_>) -> Option<Finding> {
    let major = |number: u32| number / 10_000;
    let (source, target) = (pair.source.server.version, pair.target.server.version);
    (major(target) < major(source)).then(|| {
        warning(
            "target_older",
            &pair.spec.target,
            Text::new(
                format!(
                    "the target is PostgreSQL {}, older than the source's {}",
                    version(target),
                    version(source)
                ),
                "a schema that uses what the older version does not know cannot be created there",
                "use a target of the source's version or newer, or create the schema yourself first",
            ),
        )
    })
}

fn standbys(pair: &Pair<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if pair.source.server.in_recovery {
        found.push(error(
            "standby",
            &pair.spec.source,
            Text::new(
                "the source is a standby (in recovery)",
                "a publication cannot be created on a standby, and logical decoding from one is not supported here",
                "let the agent of the primary be the source, or promote this server",
            ),
        ));
    }
    if pair.target.server.in_recovery {
        found.push(error(
            "standby",
            &pair.spec.target,
            Text::new(
                "the target is a standby (in recovery)",
                "a standby is read-only: no row and no subscription can be written to it",
                "choose a primary as the target, or promote this server",
            ),
        ));
    }
    found
}

/// Settings that change how apply workers parse values.
fn reading(pair: &Pair<'_>) -> impl Iterator<Item = Finding> {
    let settings = [
        (
            "array_nulls",
            "off",
            "on",
            "each NULL in an array that is replicated would be stored as the text NULL, or stop the subscription",
        ),
        (
            "xmloption",
            "document",
            "content",
            "the first value of type xml that is no whole document would stop the subscription",
        ),
    ];
    let server = &pair.target.server;
    let node = &pair.spec.target;
    settings.into_iter().filter_map(move |(name, bad, good, why)| {
        let set = server.setting(name)?.eq_ignore_ascii_case(bad);
        let role = quoted(&server.role);
        let fix = format!(
            "ALTER ROLE {role} SET {name} = {good}, or change it where it is set: server, database or role"
        );
        set.then(|| error(name, node, Text::new(format!("{name} is {bad} for role {role}"), why, fix)))
    })
}

fn pooler(end: &End<'_>) -> Option<Finding> {
    end.server.pooled.as_ref().map(|how| {
        error(
            "pooler",
            end.node,
            Text::new(
                format!("between the agent and PostgreSQL there is a pooler or load balancer: {how}"),
                "a snapshot can only be shared by sessions of one server, and lives as long as the session that exported it",
                "let the agent's --postgres point straight at the server, not at the pooler",
            ),
        )
    })
}

fn encoding(pair: &Pair<'_>) -> Option<Finding> {
    let (source, target) = (&pair.source.server.encoding, &pair.target.server.encoding);
    if source == target {
        return None;
    }
    if target != "UTF8" {
        return Some(error(
            "encoding",
            &pair.spec.target,
            Text::new(
                format!("the source database is in {source}, the target database in {target}"),
                "characters that the target's encoding does not have would end the copy, or replication later",
                format!(
                    "create the target database with ENCODING 'UTF8' or '{source}' (TEMPLATE template0)"
                ),
            ),
        ));
    }
    (source == "SQL_ASCII").then(|| {
        warning(
            "encoding_unchecked",
            &pair.spec.source,
            Text::new(
                "the source database is in SQL_ASCII, which checks nothing; the target is in UTF8",
                "the first value that is not valid UTF-8 ends the copy, or replication later",
                "make sure that all text is UTF-8, or create the target database in SQL_ASCII too",
            ),
        )
    })
}

fn collation(pair: &Pair<'_>) -> Option<Finding> {
    let (source, target) = (&pair.source.server, &pair.target.server);
    if source.collation != target.collation {
        return Some(warning(
            "collation",
            &pair.spec.target,
            Text::new(
                format!(
                    "the source database collates by {}, the target by {}",
                    source.collation, target.collation
                ),
                "the same query may sort and compare text differently on the two, and a unique or exclusion constraint may accept on one what it refuses on the other",
                "create the target database with the source's collation, unless the difference is wanted",
            ),
        ));
    }
    let versions = (&source.collation_version, &target.collation_version);
    match versions {
        (Some(source), Some(target)) if source != target => Some(info(
            "collation_version",
            &pair.spec.target,
            Text::new(
                format!(
                    "the collation is of version {source} on the source and {target} on the target"
                ),
                "sort order may differ in rare cases; indexes are rebuilt on the target, so they are correct",
                "nothing, unless both must sort alike to the last character",
            ),
        )),
        _ => None,
    }
}

fn clocks(pair: &Pair<'_>) -> Option<Finding> {
    let agents = pair.target.clock_ahead_seconds;
    let servers =
        agents + pair.source.server.clock_ahead_seconds - pair.target.server.clock_ahead_seconds;
    let (whose, ahead) = if servers.abs() >= agents.abs() {
        ("servers", servers)
    } else {
        ("agents", agents)
    };
    (ahead.abs() > CLOCK_TOLERANCE_SECONDS).then(|| {
        warning(
            "clocks",
            &pair.spec.target,
            Text::new(
                format!(
                    "the {whose}' clocks differ: {} is {:.1} s {} {}",
                    pair.spec.source,
                    ahead.abs(),
                    if ahead > 0.0 { "ahead of" } else { "behind" },
                    pair.spec.target
                ),
                "logs, lag, the validity of certificates and the order of conflicting changes depend on these clocks",
                "keep both machines' time with NTP (chrony, systemd-timesyncd)",
            ),
        )
    })
}

/// A quoted SQL identifier.
pub(super) fn quoted(role: &str) -> String {
    format!("\"{}\"", role.replace('"', "\"\""))
}
