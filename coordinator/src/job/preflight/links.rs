//! Connections: agent to agent, PostgreSQL to PostgreSQL, and the source's agent to its own PostgreSQL as
//! a replication client.

use steep_protocol::message::facts::Finding;

use super::{Pair, Text, error};

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    findings.extend(replication(pair));
    findings.extend(agents(pair));
    findings.extend(servers(pair));
    findings.extend(database(pair));
}

fn replication(pair: &Pair<'_>) -> Option<Finding> {
    let Some(Err(reason)) = &pair.source.replication_link else {
        return None;
    };
    Some(error(
        "replication_connection",
        &pair.spec.source,
        Text::new(
            format!("PostgreSQL refuses the agent's replication connection: {reason}"),
            "the snapshot for the copy is exported by a replication slot, which needs such a connection",
            "check pg_hba.conf for this role and database, and that no pooler stands in between (even in session mode, few know replication)",
        ),
    ))
}

fn agents(pair: &Pair<'_>) -> Option<Finding> {
    let Some(Err(reason)) = &pair.target.agent_link else {
        return None;
    };
    let source = &pair.spec.source;
    Some(error(
        "agent_link",
        &pair.spec.target,
        Text::new(
            format!("this agent does not reach the agent of {source}: {reason}"),
            "rows travel from agent to agent over QUIC, which is UDP",
            format!(
                "allow UDP from here to the port that the agent of {source} listens on, and check its --listen and --advertise"
            ),
        ),
    ))
}

fn servers(pair: &Pair<'_>) -> Option<Finding> {
    let Some(Err(reason)) = &pair.target.server_link else {
        return None;
    };
    let source = &pair.spec.source;
    if reason.contains("password is required") {
        return Some(error(
            "subscription_password",
            &pair.spec.target,
            Text::new(
                format!(
                    "role {} may not subscribe to {source} without a password in the connection string",
                    pair.target.server.role
                ),
                "from PostgreSQL 16 on, a subscription of a role that is no superuser must log in by password (password_required)",
                format!(
                    "put a password into --replication-conninfo of the agent of {source} (or its passfile) and ask for it in pg_hba.conf there, or let this agent connect as a superuser"
                ),
            ),
        ));
    }
    Some(error(
        "server_link",
        &pair.spec.target,
        Text::new(
            format!("this PostgreSQL does not reach the one of {source}: {reason}"),
            "changes after the copy are fetched by a subscription, from server to server",
            format!(
                "check listen_addresses, pg_hba.conf and firewalls of {source}; if it is reached at another address from here, say so with --replication-conninfo of its agent"
            ),
        ),
    ))
}

/// The connection string for subscriptions is configured apart from the agent's own, and may lead elsewhere.
fn database(pair: &Pair<'_>) -> Option<Finding> {
    let reached = pair.target.server_reached.as_ref()?;
    let own = pair.source.server.lineage.identity?;
    if (reached.system, reached.oid) == (own.system, own.database) {
        return None;
    }
    let source = &pair.spec.source;
    let at = if reached.system == own.system {
        ""
    } else {
        " of another server"
    };
    let right = &pair.source.server.database;
    Some(error(
        "replication_conninfo",
        source,
        Text::new(
            format!(
                "--replication-conninfo of this agent leads to database {}{at}, and the agent replicates {right}",
                reached.name
            ),
            "the subscription would find no slot there, so no change would arrive after the copy",
            format!(
                "let --replication-conninfo name database {right} of the same server as --postgres, and restart the agent"
            ),
        ),
    ))
}
