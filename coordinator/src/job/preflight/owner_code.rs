//! Functions of table owners that would run with more rights than their owners have while rows are loaded.

use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::Method;

use super::text::names;
use super::{Pair, Text, warning};

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
    let (calls, of_indexes) = if pair.schema_is_created() {
        (&pair.source.owner_code, &pair.source.index_code)
    } else {
        (&pair.target.owner_code, &pair.target.index_code)
    };
    let mut calls = calls.clone();
    if by_postgresql {
        // Our own copy makes these indexes once the rows are there, which runs them as their owner.
        calls.extend(of_indexes.names.iter().cloned());
        calls.count += of_indexes
            .count
            .saturating_sub(of_indexes.names.len() as u64);
    }
    if calls.is_empty() || target.powers.is_empty() || (by_postgresql && as_owner) {
        return;
    }
    let native = if as_owner {
        "; or run init with --method native, which loads with each owner's own rights"
    } else {
        ""
    };
    findings.push(warning(
        "owner_code",
        &pair.spec.target,
        Text::new(
            format!(
                "rows are loaded as {} ({}) and call functions that belong to ordinary roles: {}",
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
