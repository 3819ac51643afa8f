//! Whose changes the two databases apply, and what earlier jobs left in them.

use steep_protocol::JobId;
use steep_protocol::message::facts::{Finding, SubscribedTables};
use steep_protocol::message::job::{Method, ReplicationNames};
use steep_protocol::message::lineage::{ChangeOrigin, Lineage, Sameness, Tool};

use super::super::lineage::{Around, Graph, Step};
use super::text::{all_names, counted, names, version};
use super::{Pair, Text, error, warning};

/// The oldest version whose subscriptions can filter changes by origin.
const KNOWS_ORIGINS: u32 = 160_000;

/// Judges who follows whom, and leftovers of earlier jobs.
pub(super) fn judge(pair: &Pair<'_>, around: &Around, findings: &mut Vec<Finding>) {
    if is_same_database(pair) {
        // Already an error of its own, and every finding below would appear twice.
        return;
    }
    findings.extend(feedback(pair, around));
    findings.extend(followers(pair, around));
    findings.extend(merged(pair, around));
    findings.extend(
        pair.target
            .subscribed
            .iter()
            // Tables that get new rows are those that it follows.
            .filter(|seen| pair.spec.method != Method::Reinit || ours(seen).is_none())
            .map(|seen| subscribed(pair, around, seen)),
    );
    findings.extend(forgotten_on_target(pair, around));
    findings.extend(forgotten_on_source(pair, around));
}

/// Which of the source's changes the subscription receives: all, unless the target's own changes would
/// come back with them.
pub(super) fn origin(pair: &Pair<'_>, around: &Around) -> ChangeOrigin {
    if pair.spec.method != Method::Merge && way_back(pair, &graph(pair, around)).is_empty() {
        ChangeOrigin::Any
    } else {
        ChangeOrigin::None
    }
}

/// Whether both ends are the same running database. Both were asked within seconds, so the start time of
/// its server distinguishes a physical copy.
pub(super) fn is_same_database(pair: &Pair<'_>) -> bool {
    let (source, target) = (&pair.source.server.lineage, &pair.target.server.lineage);
    let both = source.identity.zip(target.identity);
    both.is_some_and(|(source, target)| source.compare(&target) == Sameness::Same)
}

fn graph<'a>(pair: &Pair<'a>, around: &'a Around) -> Graph<'a> {
    Graph::new(
        around,
        [
            (&pair.spec.source, &pair.source.server.lineage),
            (&pair.spec.target, &pair.target.server.lineage),
        ],
    )
}

/// The path by which the target's changes reach the source. A restored target may look like the database
/// that it is a copy of; a path from that one is not a path from the target.
fn way_back<'a>(pair: &Pair<'a>, graph: &Graph<'a>) -> Vec<Step<'a>> {
    let path = graph.path(&pair.spec.source, &pair.spec.target);
    let ends_elsewhere = path
        .last()
        .is_some_and(|step| step.upstream != &pair.spec.target);
    if pair.is_restored() && ends_elsewhere {
        return Vec::new();
    }
    path
}

fn describe(path: &[Step<'_>]) -> String {
    let steps = path.iter().map(|step| {
        format!(
            "{} follows {} by subscription {}",
            step.node, step.upstream, step.subscription
        )
    });
    steps.collect::<Vec<_>>().join(", ")
}

fn feedback(pair: &Pair<'_>, around: &Around) -> Vec<Finding> {
    let graph = graph(pair, around);
    let (source, target) = (&pair.spec.source, &pair.spec.target);
    let path = way_back(pair, &graph);
    let Some(last) = path.last() else {
        return out_of_sight(pair, &graph).into_iter().collect();
    };
    let alias = if last.upstream == target {
        String::new()
    } else {
        format!(", and {} is the database that {target} is", last.upstream)
    };
    let what = format!("{}{alias}", describe(&path));
    if !pair.is_restored() {
        return vec![error(
            "source_follows_target",
            source,
            Text::new(
                what,
                format!(
                    "changes to {target} are replicated to {source}: emptying and filling its tables would empty and fill the source's"
                ),
                format!(
                    "choose a source that does not follow {target}, or drop that subscription on {} first",
                    last.node
                ),
            ),
        )];
    }
    let mut found = Vec::new();
    let oldest = pair.source.server.version.min(pair.target.server.version);
    if oldest < KNOWS_ORIGINS || path.iter().any(|step| step.origin == ChangeOrigin::Any) {
        found.push(error(
            "changes_would_circle",
            source,
            Text::new(
                what.clone(),
                "each change would come back to its origin, and circulate without end",
                "both servers must be PostgreSQL 16 or newer and that subscription must have origin = none; or drop it first",
            ),
        ));
    }
    let others = graph.others(source, target);
    if !others.is_empty() {
        let others: Vec<String> = others.into_iter().map(str::to_owned).collect();
        found.push(error(
            "changes_would_be_missed",
            source,
            Text::new(
                format!(
                    "{what}; and {source} receives changes of others by {}",
                    all_names(&others)
                ),
                format!(
                    "{target} can only receive changes made on {source} itself, or its own would come back; changes that {source} receives from others would be missing without any error"
                ),
                "drop those subscriptions, or the one that leads back",
            ),
        ));
    }
    found
}

/// What two nodes that are merged need beside a path in each direction.
fn merged(pair: &Pair<'_>, around: &Around) -> Vec<Finding> {
    if pair.spec.method != Method::Merge {
        return Vec::new();
    }
    let (source, target) = (&pair.spec.source, &pair.spec.target);
    let mut found = Vec::new();
    for end in pair.ends() {
        if end.server.version < KNOWS_ORIGINS {
            found.push(error(
                "merge_needs_origins",
                end.node,
                Text::new(
                    format!("it is PostgreSQL {}", version(end.server.version)),
                    "subscriptions know where a change was made only since PostgreSQL 16: before, each change would come back to its origin",
                    "upgrade both servers to PostgreSQL 16 or newer",
                ),
            ));
        }
    }
    let graph = graph(pair, around);
    let others = graph.others(source, target);
    // With a way back, that is told already.
    if !others.is_empty() && way_back(pair, &graph).is_empty() {
        let others: Vec<String> = others.into_iter().map(str::to_owned).collect();
        found.push(error(
            "changes_would_be_missed",
            source,
            Text::new(
                format!("{source} receives changes of others by {}", all_names(&others)),
                format!("{target} receives only changes made on {source} itself: those of others would be missing without any error"),
                "drop those subscriptions first",
            ),
        ));
    }
    found
}

/// A path back that may lead through servers without an agent.
fn out_of_sight(pair: &Pair<'_>, graph: &Graph<'_>) -> Option<Finding> {
    let upstreams = graph.unknown_upstreams(&pair.spec.source);
    let followers = graph.unknown_followers(&pair.spec.target);
    if upstreams.is_empty() || followers.is_empty() {
        // A path back needs both.
        return None;
    }
    let upstreams: Vec<String> = upstreams
        .into_iter()
        .map(|(node, subscription)| format!("{subscription} on {node}"))
        .collect();
    let followers: Vec<String> = followers.into_iter().map(str::to_owned).collect();
    Some(warning(
        "source_follows_unknown",
        &pair.spec.source,
        Text::new(
            format!(
                "the publisher of {} is not a known node, and an unknown server follows {} by slot {}",
                all_names(&upstreams),
                pair.spec.target,
                all_names(&followers)
            ),
            format!(
                "if one of them follows the other, changes to {} are replicated to {}",
                pair.spec.target, pair.spec.source
            ),
            "make sure that it does not; with agents beside those servers this would be known",
        ),
    ))
}

/// Nodes that follow the target: emptying and filling its tables would be replicated to them.
fn followers(pair: &Pair<'_>, around: &Around) -> Option<Finding> {
    let target = &pair.spec.target;
    let graph = graph(pair, around);
    // New rows reach them as changes of the rows that differ.
    let changes = pair.spec.method == Method::Reinit;
    if changes || pair.is_restored() || !way_back(pair, &graph).is_empty() {
        return None;
    }
    let followers: Vec<String> = graph
        .followers(target)
        .into_iter()
        .map(|step| format!("{} by subscription {}", step.node, step.subscription))
        .collect();
    // Their own tables are not touched by those that are added.
    let tell = match pair.spec.method.changes_tables() {
        true => warning,
        false => error,
    };
    (!followers.is_empty()).then(|| {
        tell(
            "target_is_followed",
            target,
            Text::new(
                format!("{target} is followed by {}", all_names(&followers)),
                format!(
                    "emptying and filling the tables of {target} is replicated to whoever follows it: their tables are emptied too, and their subscriptions stop if that is refused or a row exists already"
                ),
                "end these subscriptions first: on each of those nodes ALTER SUBSCRIPTION … DISABLE, SET (slot_name = NONE), DROP SUBSCRIPTION, then steep-repl init cancel --node NODE once it is diverged, which drops the slot; initialise those nodes again afterwards",
            ),
        )
    })
}

/// The job whose subscription it is.
fn ours(seen: &SubscribedTables) -> Option<JobId> {
    (seen.tool == Tool::PostgreSql)
        .then(|| ReplicationNames::parse(&seen.subscription))
        .flatten()
}

fn subscribed(pair: &Pair<'_>, around: &Around, seen: &SubscribedTables) -> Finding {
    let (node, name) = (&pair.spec.target, &seen.subscription);
    let ours = ours(seen);
    let tables = &seen.tables;
    if ours.is_some() && pair.spec.method == Method::Add {
        return error(
            "already_followed",
            node,
            Text::new(
                format!("{node} follows {} already", names(tables)),
                "what is added is copied first, and would be there twice",
                format!(
                    "name only tables that it does not follow; steep-repl tables list --node {node} shows them"
                ),
            ),
        );
    }
    let graph = graph(pair, around);
    let alias = graph.aliases(node).into_iter().next();
    let (whose, fix) = match (ours, seen.tool.schema()) {
        (Some(job), _) if alias.is_some_and(|_| around.remembered.contains(&job)) => (
            format!("subscription {name} of job {job}"),
            format!(
                "steep-repl nodes remove {0} ends it: {0} is another name of this database, and the subscription is its",
                alias.unwrap_or(node)
            ),
        ),
        (Some(job), _) => (
            format!("subscription {name} of job {job}"),
            format!(
                "steep-repl init cancel --node {node} --force-cleanup removes it, its slot and its publication"
            ),
        ),
        (None, None) => (
            format!("subscription {name}"),
            format!(
                "DROP SUBSCRIPTION {name} on {node}, or leave these tables out with --exclude-table"
            ),
        ),
        (None, Some(schema)) => (
            format!("subscription {name} of {schema}"),
            format!(
                "drop it with {schema}.drop_subscription, or leave these tables out with --exclude-table"
            ),
        ),
    };
    error(
        "live_subscription",
        node,
        Text::new(
            format!(
                "{whose} writes to {}: {}",
                counted(tables.count, "table to be filled", "tables to be filled"),
                names(tables)
            ),
            "its changes and those of the new subscription would conflict in the same rows",
            fix,
        ),
    )
}

/// Jobs with traces in a database that the coordinator does not know.
fn unremembered(
    lineage: &Lineage,
    around: &Around,
    at: impl Fn(&Lineage) -> Vec<JobId>,
) -> Vec<JobId> {
    let mut jobs = at(lineage);
    jobs.retain(|job| !around.remembered.contains(job));
    jobs.sort_unstable();
    jobs.dedup();
    jobs
}

fn joined(jobs: &[JobId]) -> String {
    all_names(&jobs.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn forgotten_on_target(pair: &Pair<'_>, around: &Around) -> Option<Finding> {
    let recorded = |lineage: &Lineage| lineage.jobs.clone();
    let jobs = unremembered(&pair.target.server.lineage, around, recorded);
    let node = &pair.spec.target;
    (!jobs.is_empty()).then(|| {
        error(
            "forgotten_job",
            node,
            Text::new(
                format!(
                    "tables here belong to a job that this coordinator does not remember: {}",
                    joined(&jobs)
                ),
                "another coordinator may be filling them; otherwise they are half filled, and some of their indexes are missing",
                format!(
                    "steep-repl init cancel --node {node} --force-cleanup removes what that job made, once no other coordinator works on it"
                ),
            ),
        )
    })
}

fn forgotten_on_source(pair: &Pair<'_>, around: &Around) -> Option<Finding> {
    let slots = |lineage: &Lineage| {
        let names = lineage.slots.iter();
        names
            .filter_map(|slot| ReplicationNames::parse(slot))
            .collect()
    };
    let jobs = unremembered(&pair.source.server.lineage, around, slots);
    let node = &pair.spec.source;
    (!jobs.is_empty()).then(|| {
        warning(
            "forgotten_slot",
            node,
            Text::new(
                format!(
                    "replication slots here belong to jobs that this coordinator does not remember: {}",
                    joined(&jobs)
                ),
                "another coordinator's replica may use them; an unused slot keeps WAL for ever",
                format!(
                    "steep-repl init cancel --node {node} --force-cleanup removes the unused ones"
                ),
            ),
        )
    })
}
