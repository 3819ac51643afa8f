//! Code of table owners that would run with more rights than they have while rows are loaded.

use steep_protocol::message::facts::{Finding, Listed};
use steep_protocol::message::job::{AbsentTables, Confirmation, Method, SchemaMode};

use super::text::names;
use super::{Pair, Text, error, warning};

/// From this version on, PostgreSQL applies changes and loads rows as each table's owner, so its
/// functions gain nothing (PostgreSQL manual, CREATE SUBSCRIPTION, `run_as_owner`).
const RUNS_AS_TABLE_OWNER: u32 = 160_000;

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let target = &pair.target.server;
    let by_postgresql = matches!(
        pair.spec.method,
        Method::Native | Method::Backup | Method::Merge
    );
    let as_owner = target.version >= RUNS_AS_TABLE_OWNER;
    let (source, target_code) = (pair.source, pair.target);
    let mut calls = Listed::default();
    if pair.schema_is_created() {
        calls.add(&source.owner_code);
        if by_postgresql {
            // Our own copy makes these indexes once the rows are there, which runs them as their owner.
            calls.add(&source.index_code);
        }
    } else {
        calls.add(&target_code.owner_code);
        if by_postgresql {
            calls.add(&target_code.index_code);
        }
        if creates_tables(pair) {
            // They are the agent's role's until their rows and indexes are there.
            calls.add(&source.owner_code);
            calls.add(&source.index_code);
        }
    }
    if calls.is_empty() || target.powers.is_empty() || (by_postgresql && as_owner) {
        return;
    }
    let native = if as_owner {
        "; or run init with --method native, which loads with each owner's own rights"
    } else {
        ""
    };
    // What nobody has asked for is not done with more rights than its owner has.
    let of_policy =
        pair.spec.method == Method::Add && pair.spec.confirmation == Confirmation::Needed;
    let severe = if of_policy { error } else { warning };
    findings.push(severe(
        "owner_code",
        &pair.spec.target,
        Text::new(
            format!(
                "rows are loaded as {} ({}) and run code of ordinary roles: {}",
                target.role,
                target.powers.join(", "),
                names(&calls)
            ),
            "their owners can make them do whatever that role may do, while rows are loaded",
            format!(
                "let this node's agent connect as a role without these rights, as README says \
                 (\"PostgreSQL\"){native}; or put these tables into a database of their own"
            ),
        ),
    ));
}

/// Whether tables are created beside others.
fn creates_tables(pair: &Pair<'_>) -> bool {
    pair.spec.absent == AbsentTables::Created || pair.spec.schema_mode == SchemaMode::Auto
}
