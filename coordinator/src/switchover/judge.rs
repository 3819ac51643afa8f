//! What speaks against a switchover. Pure: facts in, findings out.

use steep_protocol::message::facts::{Finding, Listed, Severity};
use steep_protocol::message::switchover::{Lacking, SwitchoverFacts, SwitchoverSpec, WayBack};
use steep_protocol::{ByteCount, Identifier, NodeId};

use crate::job::preflight::text::{bytes, counted, names};

/// What the coordinator knows of the two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// WAL that the replica has not confirmed, where that is known.
    pub lag: Option<ByteCount>,
    /// Whether the replicated columns differ.
    pub columns_differ: bool,
    /// Other nodes that follow the old one.
    pub others: Vec<NodeId>,
    /// Why some of the replica's sequences were not set when that was tried last.
    pub sequences: Option<String>,
}

/// The share of the lock table that a switchover may fill: others need locks too.
const LOCK_SHARE: u64 = 2;

/// Findings, gravest first.
#[must_use]
pub fn judge(
    spec: &SwitchoverSpec,
    known: &Known,
    old: &SwitchoverFacts,
    new: &SwitchoverFacts,
) -> Vec<Finding> {
    let mut found = Vec::new();
    replication(spec, known, &mut found);
    for (node, facts) in [(&spec.from, old), (&spec.to, new)] {
        rights(node, facts, &mut found);
    }
    writers(spec, old, &mut found);
    lacking(spec, old, new, &mut found);
    way_back(spec, old, &mut found);
    told(spec, known, old, &mut found);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

/// Whether nothing speaks against it.
#[must_use]
pub fn is_free(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.severity != Severity::Error)
}

struct Words {
    code: &'static str,
    what: String,
    why: &'static str,
    fix: String,
}

fn finding(severity: Severity, node: &NodeId, words: Words) -> Finding {
    Finding {
        severity,
        code: words.code.to_owned(),
        node: Some(node.clone()),
        what: words.what,
        why: words.why.to_owned(),
        fix: words.fix,
    }
}

fn error(node: &NodeId, words: Words) -> Finding {
    finding(Severity::Error, node, words)
}

fn warning(node: &NodeId, words: Words) -> Finding {
    finding(Severity::Warning, node, words)
}

fn info(node: &NodeId, words: Words) -> Finding {
    finding(Severity::Info, node, words)
}

fn quoted(name: &str) -> String {
    Identifier::parse(name).map_or_else(|_| name.to_owned(), |name| name.quoted())
}

fn replication(spec: &SwitchoverSpec, known: &Known, found: &mut Vec<Finding>) {
    match known.lag {
        Some(lag) if lag > spec.max_lag => found.push(error(
            &spec.to,
            Words {
                code: "lag",
                what: format!("{} of WAL are not applied yet", bytes(lag)),
                why: "writes would be stopped until they are",
                fix: format!(
                    "wait until they are, see steep-repl status {}; or allow more with --max-lag",
                    spec.to
                ),
            },
        )),
        Some(_) => {}
        None => found.push(warning(
            &spec.to,
            Words {
                code: "lag_unknown",
                what: "how far it is behind is not known yet".to_owned(),
                why: "writes are stopped until it has applied everything",
                fix: "try again in some seconds".to_owned(),
            },
        )),
    }
    if let Some(why) = &known.sequences {
        found.push(warning(
            &spec.to,
            Words {
                code: "sequences_not_set",
                what: why.clone(),
                why: "if that is still so once writes are stopped, they are given back",
                fix: "see to it before".to_owned(),
            },
        ));
    }
    if known.columns_differ {
        found.push(error(
            &spec.to,
            Words {
                code: "columns_differ",
                what: format!(
                    "the columns of replicated tables differ from those of {}",
                    spec.from
                ),
                why: "applications would find other columns, and replication may stop",
                fix: format!(
                    "make them equal: steep-repl schema compare {} {}",
                    spec.from, spec.to
                ),
            },
        ));
    }
}

fn rights(node: &NodeId, facts: &SwitchoverFacts, found: &mut Vec<Finding>) {
    let role = quoted(&facts.role);
    if facts.standby {
        found.push(error(
            node,
            Words {
                code: "standby",
                what: "its server is a standby".to_owned(),
                why: "nothing can be changed on a standby",
                fix: "let its agent connect to the primary".to_owned(),
            },
        ));
    }
    if !facts.may_set_database {
        found.push(error(
            node,
            Words {
                code: "may_not_set_database",
                what: format!(
                    "{} may not change settings of the database {}",
                    facts.role, facts.database
                ),
                why: "new sessions are made read-only with ALTER DATABASE, which its owner may run",
                fix: format!("GRANT {} TO {role}", quoted(&facts.owner)),
            },
        ));
    }
    let missing: Vec<&str> = [
        (facts.may_see_sessions, "pg_read_all_stats"),
        (facts.may_end_sessions, "pg_signal_backend"),
    ]
    .into_iter()
    .filter_map(|(may, role)| (!may).then_some(role))
    .collect();
    if !missing.is_empty() {
        found.push(error(
            node,
            Words {
                code: "may_not_end_sessions",
                what: format!(
                    "{} is not a member of {}",
                    facts.role,
                    missing.join(" and ")
                ),
                why: "sessions that began under the other setting are found and ended",
                fix: format!("GRANT {} TO {role}", missing.join(", ")),
            },
        ));
    }
}

fn writers(spec: &SwitchoverSpec, old: &SwitchoverFacts, found: &mut Vec<Finding>) {
    let from = &spec.from;
    if !old.superuser && old.superuser_sessions > 0 {
        found.push(error(
            from,
            Words {
                code: "superuser_sessions",
                what: format!(
                    "{} of superusers are open",
                    counted(old.superuser_sessions, "session", "sessions")
                ),
                why: "they could go on writing, and only a superuser can end them",
                fix: "end them, or let the agent connect as a superuser".to_owned(),
            },
        ));
    }
    if !old.prepared.is_empty() {
        found.push(error(from, Words {
            code: "prepared_transactions",
            what: format!("there are prepared transactions: {}", names(&old.prepared)),
            why: "they would be committed or rolled back after the switchover, on the wrong node",
            fix: "COMMIT PREPARED or ROLLBACK PREPARED each of them".to_owned(),
        }));
    }
    if !old.writable_roles.is_empty() {
        found.push(error(from, Words {
            code: "roles_that_write",
            what: format!("default_transaction_read_only is off for the roles {}", names(&old.writable_roles)),
            why: "a role's own setting goes before that of the database, so they would go on writing",
            fix: "ALTER ROLE … RESET default_transaction_read_only for each, also IN DATABASE".to_owned(),
        }));
    }
    if !old.subscriptions.is_empty() {
        found.push(error(
            from,
            Words {
                code: "subscribes",
                what: format!(
                    "it follows others by the subscriptions {}",
                    names(&old.subscriptions)
                ),
                why: "what arrives there after the switchover would not reach the new node",
                fix: "end them, or let the new node follow the same nodes".to_owned(),
            },
        ));
    }
    if old.tables > old.lock_room / LOCK_SHARE {
        found.push(error(
            from,
            Words {
                code: "lock_table",
                what: format!(
                    "{} tables are locked at once, and the server has room for {} locks",
                    old.tables, old.lock_room
                ),
                why: "at the end of the stop every table is locked against writers for a moment",
                fix: "raise max_locks_per_transaction and restart the server".to_owned(),
            },
        ));
    }
}

fn lacking(
    spec: &SwitchoverSpec,
    old: &SwitchoverFacts,
    new: &SwitchoverFacts,
    found: &mut Vec<Finding>,
) {
    let severity = match spec.lacking {
        Lacking::Refused => Severity::Error,
        Lacking::Accepted => Severity::Warning,
    };
    let mut lacks = |node: &NodeId, listed: &Listed, severity, words: Words| {
        if !listed.is_empty() {
            found.push(finding(severity, node, words));
        }
    };
    lacks(
        &spec.from,
        &old.not_replicated,
        severity,
        Words {
            code: "not_replicated",
            what: format!(
                "these tables are not replicated to {}: {}",
                spec.to,
                names(&old.not_replicated)
            ),
            why: "their rows stay behind",
            fix: "replicate them, or accept that with --force".to_owned(),
        },
    );
    lacks(
        &spec.to,
        &new.lacking_roles,
        severity,
        Words {
            code: "roles_missing",
            what: format!(
                "these roles of {} do not exist or cannot log in: {}",
                spec.from,
                names(&new.lacking_roles)
            ),
            why: "applications that connect as one of them find no way in",
            fix: "CREATE ROLE … LOGIN for each, or accept that with --force".to_owned(),
        },
    );
    lacks(
        &spec.to,
        &new.lacking_sequences,
        severity,
        Words {
            code: "sequences_missing",
            what: format!(
                "these sequences of {} do not exist: {}",
                spec.from,
                names(&new.lacking_sequences)
            ),
            why: "applications that take numbers from one of them fail",
            fix: "CREATE SEQUENCE for each, or accept that with --force".to_owned(),
        },
    );
    lacks(
        &spec.to,
        &new.lacking_extensions,
        Severity::Warning,
        Words {
            code: "extensions_missing",
            what: format!(
                "these extensions of {} are not installed: {}",
                spec.from,
                names(&new.lacking_extensions)
            ),
            why: "applications may call their functions",
            fix: "CREATE EXTENSION for each that they use".to_owned(),
        },
    );
}

fn way_back(spec: &SwitchoverSpec, old: &SwitchoverFacts, found: &mut Vec<Finding>) {
    if spec.way_back == WayBack::None {
        return;
    }
    let role = quoted(&old.role);
    let origin = format!(
        "GRANT EXECUTE ON FUNCTION pg_replication_origin_advance(text, pg_lsn), \
         pg_replication_origin_progress(text, boolean) TO {role}"
    );
    let subscribe = format!("GRANT pg_create_subscription TO {role}");
    for (may, what, fix) in [
        (old.may_subscribe, "create subscriptions", subscribe),
        (
            old.may_advance_origin,
            "advance replication origins",
            origin,
        ),
    ] {
        if !may {
            found.push(error(
                &spec.from,
                Words {
                    code: "may_not_follow",
                    what: format!("{} may not {what}", old.role),
                    why: "it follows the new node afterwards",
                    fix,
                },
            ));
        }
    }
    if !old.replica_triggers.is_empty() {
        found.push(error(&spec.from, Words {
            code: "replica_triggers",
            what: format!("triggers fire for applied changes: {}", names(&old.replica_triggers)),
            why: "it stays read-only to everybody but replication, and what a trigger writes would stop that",
            fix: "ALTER TABLE … ENABLE TRIGGER … for each, or switch over without --reverse".to_owned(),
        }));
    }
}

fn told(spec: &SwitchoverSpec, known: &Known, old: &SwitchoverFacts, found: &mut Vec<Finding>) {
    if !known.others.is_empty() {
        let others: Vec<&str> = known.others.iter().map(NodeId::as_str).collect();
        found.push(warning(
            &spec.from,
            Words {
                code: "other_replicas",
                what: format!("it is followed by {} as well", others.join(", ")),
                why: "they go on following it, and nothing is written there any more",
                fix: format!("initialise them from {} afterwards", spec.to),
            },
        ));
    }
    if !old.slots.is_empty() {
        found.push(warning(
            &spec.from,
            Words {
                code: "other_slots",
                what: format!("others read from its slots {}", names(&old.slots)),
                why: "they go on reading there, and nothing is written there any more",
                fix: format!("let them read from {} afterwards", spec.to),
            },
        ));
    }
    if old.sessions > 0 {
        found.push(info(
            &spec.from,
            Words {
                code: "sessions_end",
                what: format!(
                    "{} will be ended",
                    counted(old.sessions, "session", "sessions")
                ),
                why: "a session keeps the setting that it began with",
                fix: format!(
                    "applications connect again; transactions have {} s to end",
                    spec.terminate_after_seconds
                ),
            },
        ));
    }
}

#[cfg(test)]
mod tests;
