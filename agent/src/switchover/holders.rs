//! Others' transactions that keep ours waiting: named, and ended where nobody can write until they have gone.
//!
//! Whoever changes a setting of the database, from any database of the server, holds its row of `pg_db_role_setting`
//! until the end of that transaction, and our own change waits for it (`simple_heap_update` in PostgreSQL's source).

use std::convert::Infallible;
use std::fmt;
use std::time::{Duration, Instant};

use steep_protocol::{Fault, FaultKind, NodeId, Retry};
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use super::sessions::ENDABLE;
use crate::pg::{Conninfo, PgError, Session, literal};

/// How often it is looked whom our statement waits for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a transaction may go on that keeps everybody from writing.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often work is done again because somebody committed a change of the same row meanwhile.
const OVERTAKEN_MAX: usize = 3;

/// What becomes of holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holders {
    /// A fault names them.
    Stay,
    /// They are ended after [`PATIENCE`], except our own. A fault names those that remain.
    AreEnded,
}

/// Whom the process `$1` waits for, and whether this session may end it; `$2` is what our names begin with.
fn blockers() -> String {
    format!(
        "SELECT b.pid, coalesce(s.usename::text, ''), coalesce(s.application_name, ''), coalesce(s.state, ''), \
             CASE b.pid WHEN 0 THEN (SELECT min(x.gid) FROM pg_locks l \
                 JOIN pg_prepared_xacts x ON x.transaction = l.transactionid WHERE l.pid = $1 AND NOT l.granted) END, \
             s.backend_type = 'client backend' AND {ENDABLE} AND NOT (coalesce(s.usename = current_user, false) \
                 AND starts_with(coalesce(s.application_name, ''), $2)) AS endable \
         FROM (SELECT DISTINCT unnest(pg_blocking_pids($1)) AS pid) AS b \
         LEFT JOIN pg_stat_activity s ON s.pid = b.pid LEFT JOIN pg_roles r ON r.oid = s.usesysid ORDER BY 1"
    )
}

/// Does `work`, which runs one transaction of `session` under a lock timeout. A fault names whom it waited for.
pub(super) async fn past<T, F>(
    (node, session): (&NodeId, &Session),
    holders: Holders,
    work: impl Fn() -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, PgError>>,
{
    let pid = session.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid = pid.and_then(|row| row.try_get(0));
    let mut watch = Watch {
        node,
        conninfo: session.conninfo(),
        pid: pid.map_err(|error| PgError::from(error).to_fault(node))?,
        holders,
        session: None,
        began: Instant::now(),
        seen: Vec::new(),
    };
    let work = async {
        for _ in 0..OVERTAKEN_MAX {
            match work().await {
                Err(error) if is_overtaken(&error) => session.batch_execute("ROLLBACK").await?,
                done => return done,
            }
        }
        work().await
    };
    let done = tokio::select! {
        biased;
        done = work => done,
        never = watch.run() => match never {},
    };
    done.map_err(|error| match watch.seen.is_empty() {
        false if error.is_locked() => held(node, &watch.seen),
        _ => error.to_fault(node),
    })
}

/// Somebody committed a change of the row that ours waited for.
fn is_overtaken(error: &PgError) -> bool {
    match error {
        PgError::Server(error) if error.code == SqlState::INTERNAL_ERROR => {
            error.message.starts_with("tuple concurrently ")
        }
        other => other.is(&SqlState::UNIQUE_VIOLATION),
    }
}

/// Looks whom a session waits for.
struct Watch<'a> {
    node: &'a NodeId,
    conninfo: &'a Conninfo,
    pid: i32,
    holders: Holders,
    session: Option<Session>,
    began: Instant,
    /// As last seen.
    seen: Vec<Holder>,
}

impl Watch<'_> {
    async fn run(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.look().await {
                self.session = None;
                debug!(node_id = %self.node, %error, "whom our session waits for is not known");
            }
        }
    }

    async fn look(&mut self) -> Result<(), PgError> {
        let session = match &self.session {
            Some(session) => session,
            None => {
                let session = Session::connect(self.conninfo, "holders").await?;
                self.session.insert(session)
            }
        };
        let ours = self.conninfo.application_name("");
        let due = self.holders == Holders::AreEnded && self.began.elapsed() >= PATIENCE;
        let rows = session.query(&blockers(), &[&self.pid, &ours]).await?;
        let mut seen = Vec::with_capacity(rows.len());
        for row in rows {
            let pid: i32 = row.try_get(0)?;
            let holder = Holder {
                pid,
                role: row.try_get(1)?,
                application: row.try_get(2)?,
                state: row.try_get(3)?,
                prepared: row.try_get(4)?,
            };
            if due && row.try_get::<_, Option<bool>>(5)? == Some(true) {
                end(session, (self.pid, &ours), &holder, self.node).await?;
            }
            seen.push(holder);
        }
        if !seen.is_empty() {
            self.seen = seen;
        }
        Ok(())
    }
}

/// Asks again whether it is still waited for, since process ids are used again.
async fn end(
    session: &Session,
    (pid, ours): (i32, &str),
    holder: &Holder,
    node: &NodeId,
) -> Result<(), PgError> {
    let sql = format!(
        "SELECT pg_terminate_backend(h.pid) FROM ({}) AS h WHERE h.endable AND h.pid = $3",
        blockers()
    );
    let ended = session.query(&sql, &[&pid, &ours, &holder.pid]).await?;
    if !ended.is_empty() {
        warn!(event = "switchover.holder_ended", node_id = %node, "a session was ended because its transaction kept everybody from writing: {holder}");
    }
    Ok(())
}

/// A transaction that keeps ours waiting.
#[derive(Debug)]
struct Holder {
    /// 0 for a prepared transaction.
    pid: i32,
    role: String,
    application: String,
    state: String,
    /// The name of a prepared transaction.
    prepared: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, role, .. } = self;
        if *pid == 0 {
            let name = self
                .prepared
                .as_deref()
                .unwrap_or("of a name that is not known");
            return write!(f, "the prepared transaction {name}");
        }
        write!(f, "process {pid} of {role} ({})", self.application)?;
        match self.state.as_str() {
            "" => Ok(()),
            state => write!(f, ", {state}"),
        }
    }
}

impl Holder {
    /// The statement that ends it.
    fn end(&self) -> String {
        match &self.prepared {
            Some(name) => format!("ROLLBACK PREPARED {}", literal(name).trim_start()),
            None => format!("SELECT pg_terminate_backend({})", self.pid),
        }
    }
}

fn held(node: &NodeId, holders: &[Holder]) -> Fault {
    let named: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let text = format!(
        "the settings of the database cannot be changed while others hold them in a transaction: {}",
        named.join("; ")
    );
    let ends: Vec<String> = holders.iter().map(Holder::end).collect();
    let hint = format!("let it commit or roll back, or end it: {}", ends.join("; "));
    Fault::new(FaultKind::Failed, text)
        .on(node)
        .hint(hint)
        .retry(Retry::Backoff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_named_with_the_statement_that_ends_it() {
        let node = NodeId::parse("node_b").unwrap();
        let session = Holder {
            pid: 4711,
            role: "admin".to_owned(),
            application: "psql".to_owned(),
            state: "idle in transaction".to_owned(),
            prepared: None,
        };
        let prepared = Holder {
            pid: 0,
            role: String::new(),
            application: String::new(),
            state: String::new(),
            prepared: Some("it's".to_owned()),
        };
        let fault = held(&node, &[session, prepared]);
        assert!(
            fault.message.ends_with(
                "process 4711 of admin (psql), idle in transaction; the prepared transaction it's"
            ),
            "{fault}"
        );
        assert!(
            fault
                .hint
                .ends_with("SELECT pg_terminate_backend(4711); ROLLBACK PREPARED 'it''s'"),
            "{}",
            fault.hint
        );
    }

    #[test]
    fn work_is_done_again_only_where_somebody_changed_the_same_row() {
        let refused = |code, message| is_overtaken(&PgError::refused(code, message));
        assert!(refused("XX000", "tuple concurrently updated"));
        assert!(refused("23505", "duplicate key value"));
        assert!(!refused("XX000", "something else"));
        assert!(!refused("55P03", "canceling statement due to lock timeout"));
    }
}
