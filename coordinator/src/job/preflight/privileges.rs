//! Privileges of the agents' roles.

use steep_protocol::NodeId;
use steep_protocol::message::facts::{Finding, OwnedTables};
use steep_protocol::message::job::Method;

use super::servers::quoted;
use super::text::names;
use super::{End, Pair, Text, error, info};

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let target = pair.target_end();
    if pair.is_restored() {
        if pair.spec.method == Method::Merge {
            judge_source(pair, findings);
        }
        findings.extend(create(&target));
        findings.extend(subscribe(&target));
        findings.extend(advance_origin(&target, Origin::Start));
        let apply = "changes are applied with the rights of the tables' owners";
        findings.extend(not_owner(&target, &pair.target.not_owned, apply));
        return;
    }
    judge_source(pair, findings);
    findings.extend(create(&target));
    findings.extend(unreadable(pair));
    findings.extend(row_security(pair));
    findings.extend(subscribe(&target));
    findings.extend(silence_triggers(&target));
    if pair.spec.method != Method::Native {
        findings.extend(advance_origin(&target, Origin::Shown));
    }
    let fill = "only a table's owner may drop and create its indexes, empty it and analyse it";
    findings.extend(not_owner(&target, &pair.target.not_owned, fill));
}

/// Privileges needed for publication and slot.
pub(super) fn judge_source(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let source = pair.source_end();
    findings.extend(replication(&source));
    findings.extend(create(&source));
    let publish = "only a table's owner may add it to a publication";
    findings.extend(not_owner(&source, &pair.source.not_owned, publish));
}

fn replication(end: &End<'_>) -> Option<Finding> {
    let role = &end.server.role;
    (!end.server.replication).then(|| {
        error(
            "replication_privilege",
            end.node,
            Text::new(
                format!("role {role} may not replicate"),
                "the snapshot is exported by a replication slot, which only a role with REPLICATION may create",
                format!("ALTER ROLE {} REPLICATION (on managed services grant their replication role, such as rds_replication)", quoted(role)),
            ),
        )
    })
}

fn create(end: &End<'_>) -> Option<Finding> {
    let (role, database) = (&end.server.role, &end.server.database);
    (!end.server.can_create).then(|| {
        error(
            "create_privilege",
            end.node,
            Text::new(
                format!("role {role} may not create anything in database {database}"),
                "a publication or subscription and the steep_repl schema are created in the database",
                format!("GRANT CREATE ON DATABASE {} TO {}", quoted(database), quoted(role)),
            ),
        )
    })
}

fn unreadable(pair: &Pair<'_>) -> Option<Finding> {
    let unreadable = &pair.source.unreadable;
    let role = &pair.source.server.role;
    (!unreadable.is_empty()).then(|| {
        error(
            "unreadable",
            &pair.spec.source,
            Text::new(
                format!("role {role} may not read {}", names(unreadable)),
                "what cannot be read cannot be copied",
                format!(
                    "GRANT USAGE on their schemas and SELECT on them to {0}, or GRANT pg_read_all_data TO {0}, or leave them out with --exclude-table",
                    quoted(role)
                ),
            ),
        )
    })
}

fn row_security(pair: &Pair<'_>) -> Option<Finding> {
    let hidden = &pair.source.row_security;
    let role = &pair.source.server.role;
    (!hidden.is_empty()).then(|| {
        error(
            "row_security",
            &pair.spec.source,
            Text::new(
                format!(
                    "row security hides rows from role {role} in {}",
                    names(hidden)
                ),
                "a copy would lack the rows that the policies hide",
                format!(
                    "ALTER ROLE {} BYPASSRLS, or let the agent connect as a superuser",
                    quoted(role)
                ),
            ),
        )
    })
}

/// One finding for each owner.
fn not_owner(end: &End<'_>, owned: &[OwnedTables], why: &str) -> Vec<Finding> {
    let role = &end.server.role;
    let finding = |OwnedTables { owner, tables }: &OwnedTables| {
        error(
            "not_owner",
            end.node,
            Text::new(
                format!(
                    "role {role} does not have the rights of {owner}, the owner of {}",
                    names(tables)
                ),
                why,
                format!(
                    "GRANT {} TO {}; or let the agent connect as a superuser",
                    quoted(owner),
                    quoted(role)
                ),
            ),
        )
    };
    owned.iter().map(finding).collect()
}

fn subscribe(end: &End<'_>) -> Option<Finding> {
    let role = &end.server.role;
    let fix = if end.server.version >= 160_000 {
        format!("GRANT pg_create_subscription TO {}", quoted(role))
    } else {
        "let the agent connect as a superuser (before PostgreSQL 16 nobody else may subscribe)"
            .to_owned()
    };
    (!end.server.can_subscribe).then(|| {
        error(
            "subscription_privilege",
            end.node,
            Text::new(
                format!("role {role} may not create subscriptions"),
                "changes after the copy are fetched by a subscription on this server",
                fix,
            ),
        )
    })
}

fn silence_triggers(end: &End<'_>) -> Option<Finding> {
    let role = &end.server.role;
    let fix = if end.server.version >= 150_000 {
        format!(
            "GRANT SET ON PARAMETER session_replication_role TO {}",
            quoted(role)
        )
    } else {
        "let the agent connect as a superuser".to_owned()
    };
    (!end.server.can_silence_triggers).then(|| {
        error(
            "trigger_privilege",
            end.node,
            Text::new(
                format!("role {role} may not set session_replication_role"),
                "triggers and foreign keys would fire for every row that is copied, and change or refuse it",
                fix,
            ),
        )
    })
}

/// The use of the position of the subscription's origin.
#[derive(Clone, Copy)]
enum Origin {
    /// Only shown.
    Shown,
    /// Replication starts there: where the backup ends.
    Start,
}

fn advance_origin(end: &End<'_>, origin: Origin) -> Option<Finding> {
    let role = &end.server.role;
    let finding = |make: fn(&str, &NodeId, Text) -> Finding, why: &str| {
        let text = Text::new(
            format!(
                "role {role} lacks the right to read and set the position of a replication origin"
            ),
            why,
            format!(
                "GRANT EXECUTE ON FUNCTION pg_replication_origin_advance(text, pg_lsn), pg_replication_origin_progress(text, boolean) TO {}",
                quoted(role)
            ),
        );
        make("origin_privilege", end.node, text)
    };
    (!end.server.can_advance_origin).then(|| match origin {
        Origin::Shown => finding(
            info,
            "with it, pg_stat_subscription shows the right position from the start; without it, replication starts at the same place, since the slot knows it",
        ),
        Origin::Start => finding(
            error,
            "changes between the prepared slot and the backup's end would be applied although the backup contains them",
        ),
    })
}
