//! The source's content: objects that are not replicated, roles and extensions that must exist on the
//! target, the filter, and `pg_dump`.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::{Finding, Listed, UnmatchedFilter};

use super::text::{all_names, bytes, counted, names, time, version};
use super::{Pair, Text, error, features, identity, info, warning};

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    findings.extend(filters(pair));
    findings.extend(dependants(pair));
    findings.extend(nothing_to_copy(pair));
    identity::judge(pair, findings);
    if !pair.is_restored() {
        findings.extend(not_replicated(pair));
        findings.extend(pg_dump(pair));
    }
    features::judge(pair, findings);
    findings.extend(xml(pair));
    findings.extend(extensions(pair));
    findings.extend(roles(pair));
}

/// Usual speeds of initialisations, in bytes of the source's tables and indexes per second: with a slow disk
/// or network, and with fast ones.
const USUAL_RATES: [u64; 2] = [50_000_000, 250_000_000];

/// How much would be copied, and about how long that takes.
pub(super) fn size(pair: &Pair<'_>) -> Option<Finding> {
    if pair.is_restored() {
        return None;
    }
    let (total, limit) = (pair.source.total_bytes, pair.spec.max_rate);
    let [longest, shortest] = USUAL_RATES.map(|rate| {
        let rate = limit.map_or(rate, |limit| limit.0.clamp(1, rate));
        total.0.div_ceil(rate)
    });
    let tables = counted(pair.source.tables, "table", "tables");
    let [least, most] = [time(shortest), time(longest)];
    let span = match least == most {
        true => most,
        false => format!("{least} to {most}"),
    };
    let rates = match limit {
        Some(limit) => format!("at no more than {}/s (--max-rate)", bytes(limit)),
        None => {
            let [slow, fast] = USUAL_RATES.map(|rate| bytes(ByteCount(rate)));
            format!("at {slow}/s to {fast}/s")
        }
    };
    let text = Text::new(
        format!("{tables} to copy, {} with their indexes", bytes(total)),
        format!("that takes about {span}, {rates}"),
        "",
    );
    Some(info("copy_size", &pair.spec.source, text))
}

/// The effects of publishing every table on the source.
pub(super) fn judge_source(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    findings.extend(nothing_to_copy(pair));
    identity::judge(pair, findings);
}

fn filters(pair: &Pair<'_>) -> Vec<Finding> {
    let findings = pair.source.unmatched.iter().map(|unmatched| {
        let UnmatchedFilter { option, name, near } = unmatched;
        let meant = match near.as_slice() {
            [] => format!("correct {option}, or leave it out"),
            near => format!(
                "did you mean {}? Otherwise leave {option} out",
                near.join(", ")
            ),
        };
        let text = Text::new(
            format!("{option} {name} matches nothing here"),
            "the job would copy other tables than intended",
            meant,
        );
        error("filter_matches_nothing", &pair.spec.source, text)
    });
    findings.collect()
}

/// The effects of the filter on a schema that the job creates.
fn dependants(pair: &Pair<'_>) -> Vec<Finding> {
    let (facts, node) = (&pair.source.filter, &pair.spec.source);
    if !pair.schema_is_created() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if !facts.split.is_empty() {
        found.push(error(
            "filter_splits",
            node,
            Text::new(
                format!("tables that cannot be made without others that the filter leaves out: {}", names(&facts.split)),
                "they inherit from such a table, or a column, default or check of them depends on it",
                "exclude them too with --exclude-table, or include what they depend on",
            ),
        ));
    }
    if !facts.left_out.is_empty() {
        found.push(warning(
            "filter_leaves_out",
            node,
            Text::new(
                format!(
                    "left out, since they depend on what the filter leaves out: {}",
                    names(&facts.left_out)
                ),
                "they cannot be made on the target without it",
                "nothing, if the target does not need them; otherwise include what they depend on",
            ),
        ));
    }
    if !facts.along.is_empty() {
        found.push(info(
            "filter_brings_along",
            node,
            Text::new(
                format!("from outside the included schemas: {}", names(&facts.along)),
                "the included tables cannot be made without them",
                "nothing: they are made on the target too",
            ),
        ));
    }
    found
}

fn nothing_to_copy(pair: &Pair<'_>) -> Option<Finding> {
    (pair.source.tables == 0).then(|| {
        let text = Text::new(
            format!(
                "there is no table to copy in database {}",
                pair.source.server.database
            ),
            "without a table there is nothing to copy and nothing to replicate",
            "check --include-schema and --exclude-table, and the database in --postgres of this agent",
        );
        error("nothing_to_copy", &pair.spec.source, text)
    })
}

fn not_replicated(pair: &Pair<'_>) -> Vec<Finding> {
    let (source, node) = (pair.source, &pair.spec.source);
    let listed = |what: &str, listed: &Listed| format!("{what}: {}", names(listed));
    let mut found = Vec::new();
    if !source.unlogged.is_empty() {
        found.push(warning(
            "unlogged",
            node,
            Text::new(
                listed("unlogged tables", &source.unlogged),
                "they write no WAL, so they cannot be replicated; they are not copied either, and stay empty on the target",
                "ALTER TABLE … SET LOGGED if the target needs their rows",
            ),
        ));
    }
    if source.large_objects > 0 {
        let count = counted(source.large_objects, "large object", "large objects");
        found.push(warning(
            "large_objects",
            node,
            Text::new(
                count,
                "logical replication does not know large objects, and they are not copied; columns that refer to them will refer to nothing on the target",
                "move them into bytea columns, or copy them by pg_dump --large-objects yourself",
            ),
        ));
    }
    if !source.foreign_tables.is_empty() {
        found.push(info(
            "foreign_tables",
            node,
            Text::new(
                listed("foreign tables", &source.foreign_tables),
                "their rows are stored elsewhere and are not copied",
                "make sure that the target reaches their foreign servers",
            ),
        ));
    }
    if !source.materialized_views.is_empty() {
        found.push(info(
            "materialized_views",
            node,
            Text::new(
                listed("materialised views", &source.materialized_views),
                "they are refreshed once on the target and not replicated",
                "refresh them on the target as often as on the source",
            ),
        ));
    }
    if source.sequences > 0 {
        found.push(info(
            "sequences",
            node,
            Text::new(
                counted(source.sequences, "sequence", "sequences"),
                "replication does not carry them; they are set at the end, and every minute while the node follows",
                "end replication with steep-repl detach before the target takes over writes: it sets them a last time",
            ),
        ));
    }
    found
}

fn xml(pair: &Pair<'_>) -> Option<Finding> {
    let tables = &pair.source.xml;
    let lost = !tables.is_empty() && pair.target.xml == Some(false);
    lost.then(|| {
        error(
            "xml",
            &pair.spec.target,
            Text::new(
                format!("columns of type xml in {}", names(tables)),
                "this server was built without libxml: the first row with a value in them is refused",
                "use a server that was built with libxml, or leave these tables out with --exclude-table",
            ),
        )
    })
}

fn extensions(pair: &Pair<'_>) -> Option<Finding> {
    let target = pair.target;
    let wanted = pair.source.server.extensions.iter().map(|(name, _)| name);
    let mut absent = Vec::new();
    let mut forbidden = Vec::new();
    for name in wanted {
        if target
            .server
            .extensions
            .iter()
            .any(|(have, _)| have == name)
        {
            continue;
        }
        match target.extensions_available.iter().find(|a| a.name == *name) {
            // The job creates it with the schema; an existing schema does without it.
            Some(available) if available.may_create || !pair.schema_is_created() => {}
            Some(_) => forbidden.push(name.clone()),
            None => absent.push(name.clone()),
        }
    }
    if absent.is_empty() && forbidden.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    if !absent.is_empty() {
        what.push(format!(
            "not available on the target: {}",
            all_names(&absent)
        ));
    }
    if !forbidden.is_empty() {
        let role = &target.server.role;
        what.push(format!(
            "role {role} may not create {}",
            all_names(&forbidden)
        ));
    }
    let text = Text::new(
        format!(
            "the source has extensions that the target lacks; {}",
            what.join("; ")
        ),
        "types, functions and indexes of these extensions would be missing, and so would tables that use them",
        "install the packages of these extensions on the target, or CREATE EXTENSION there as a superuser",
    );
    // The schema is created with all extensions, whatever the filter: a table's types may come from any of
    // them. Existing tables do without.
    let node = &pair.spec.target;
    Some(if pair.schema_is_created() {
        error("missing_extension", node, text)
    } else {
        warning("missing_extension", node, text)
    })
}

fn roles(pair: &Pair<'_>) -> Option<Finding> {
    let have = &pair.target.roles;
    let missing: Vec<String> = pair
        .source
        .roles
        .iter()
        .filter(|role| !have.contains(role))
        .cloned()
        .collect();
    (pair.schema_is_created() && !missing.is_empty()).then(|| {
        warning(
            "missing_role",
            &pair.spec.target,
            Text::new(
                match &missing[..] {
                    [role] => format!(
                        "the role {role} owns or may use something on the source and does not exist on the target"
                    ),
                    _ => format!(
                        "roles that own or may use something on the source do not exist on the target: {}",
                        all_names(&missing)
                    ),
                },
                "their objects will belong to the agent's role, and their grants are left out",
                "CREATE ROLE them on the target first (pg_dumpall --roles-only on the source writes the statements), or go without",
            ),
        )
    })
}

fn pg_dump(pair: &Pair<'_>) -> Option<Finding> {
    let server = pair.source.server.version;
    let trouble = match pair.source.pg_dump.as_ref()? {
        Ok(major) if *major >= server / 10_000 => return None,
        Ok(major) => format!(
            "pg_dump beside this agent is {major}, older than the server's {}",
            version(server)
        ),
        Err(reason) => format!("there is no usable pg_dump beside this agent: {reason}"),
    };
    let text = Text::new(
        trouble,
        "the target's schema is created from what pg_dump reads of the source's",
        format!(
            "install PostgreSQL's client programs, {} or newer, beside the agent of {}",
            server / 10_000,
            pair.spec.source
        ),
    );
    let node = &pair.spec.source;
    Some(if pair.schema_is_created() {
        error("pg_dump", node, text)
    } else {
        info("pg_dump", node, text)
    })
}
