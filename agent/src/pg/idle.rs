//! Sessions that are done, kept for a moment for whoever connects next.
//!
//! A job asks its servers many short questions in a row. A login for each costs the server a new process with cold
//! caches: 9 ms of its processor time, against 2 ms for a session that is there (PostgreSQL 18). A job of two tables
//! opens 36 connections in place of 73.
//!
//! Only sessions that ran nothing but our own statements come here, see [`Session::give_back`]: code of others could
//! leave something behind. At most [`KEPT`] wait, for [`LINGER`], without a transaction, a lock or a setting.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::session::Session;
use crate::mutex::lock;

/// Some steps ask two or three questions at a time; each idle session takes one of the server's connections.
const KEPT: usize = 3;

/// Between two steps of a job, the coordinator answers within milliseconds.
const LINGER: Duration = Duration::from_secs(2);

/// Idle sessions of one server. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Idle(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// The oldest first.
    sessions: Vec<(Instant, Session)>,
    /// Each closes what is old then.
    closing: JoinSet<()>,
}

impl Idle {
    /// The one that was used last.
    pub(super) fn take(&self) -> Option<Session> {
        let (_, session) = lock(&self.0).sessions.pop()?;
        Some(session)
    }

    /// Keeps it, if there is room, and closes it after a while.
    pub(super) async fn keep(self, session: Session) {
        if let Some(surplus) = self.add(session) {
            surplus.close().await;
        }
    }

    fn add(self, session: Session) -> Option<Session> {
        let waiting = &mut *lock(&self.0);
        if waiting.sessions.len() >= KEPT {
            return Some(session);
        }
        waiting.sessions.push((Instant::now(), session));
        while waiting.closing.try_join_next().is_some() {}
        let own = self.clone();
        waiting.closing.spawn(async move {
            tokio::time::sleep(LINGER).await;
            for session in own.old() {
                session.close().await;
            }
        });
        None
    }

    fn old(&self) -> Vec<Session> {
        let sessions = &mut lock(&self.0).sessions;
        let fresh = |(since, _): &(Instant, Session)| since.elapsed() < LINGER;
        let first = sessions.iter().position(fresh).unwrap_or(sessions.len());
        let old = sessions.drain(..first);
        old.map(|(_, session)| session).collect()
    }
}

#[cfg(test)]
mod tests {
    use steep_tests::pg::{DATABASE, Installation, Options, Server};
    use steep_tests::wait;

    use super::super::Conninfo;
    use super::*;

    /// Well above [`LINGER`], on a busy machine.
    const CLOSED_LIMIT: Duration = Duration::from_secs(60);

    /// The server process of a session, and what another session must not notice.
    async fn seen(session: &Session) -> (i32, [String; 3]) {
        let sql = "SELECT pg_backend_pid(), current_setting('application_name'), current_setting('lock_timeout'), \
                current_setting('statement_timeout')";
        let row = session.query_one(sql, &[]).await.unwrap();
        (row.get(0), [1, 2, 3].map(|at| row.get(at)))
    }

    // Sessions are closed while the test waits.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_session_is_used_again_without_a_trace_unless_it_could_have_one() {
        let installation = Installation::preferred().unwrap();
        let server = Server::start(&installation, Options::named("idle")).unwrap();
        let password = format!("password='{}'", server.password());
        let conninfo = format!("{} {password}", server.conninfo(DATABASE));
        let conninfo = Conninfo::parse(&conninfo).unwrap();

        let first = Session::connect_impatient(&conninfo, "first")
            .await
            .unwrap();
        let of_first = seen(&first).await;
        assert_eq!(of_first.1, ["steep-repl first", "1s", "0"]);
        first
            .batch_execute("SET statement_timeout = 77")
            .await
            .unwrap();
        first.give_back().await;
        let again = Session::connect(&conninfo, "again").await.unwrap();
        let shown = ["steep-repl again", "0", "0"].map(str::to_owned);
        assert_eq!(seen(&again).await, (of_first.0, shown));

        // Two at once are two.
        let other = Session::connect(&conninfo, "other").await.unwrap();
        assert_ne!(seen(&other).await.0, of_first.0);

        // A transaction, code of others, and a server that ended it: each means a login.
        other.batch_execute("BEGIN").await.unwrap();
        other.give_back().await;
        again.read_user_views().await.unwrap();
        again.give_back().await;
        assert!(conninfo.idle.take().is_none());
        let third = Session::connect(&conninfo, "third").await.unwrap();
        let ended = seen(&third).await.0;
        third.give_back().await;
        let sql = format!("SELECT pg_terminate_backend({ended}, 5000)");
        server.database(DATABASE).sql(&sql).unwrap();
        let fourth = Session::connect(&conninfo, "fourth").await.unwrap();
        assert_ne!(seen(&fourth).await.0, ended);

        fourth.give_back().await;
        let open =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'steep-repl %'";
        let database = server.database(DATABASE);
        let closed = || Ok(database.sql(open)? == "0");
        wait::until_true("idle sessions to be closed", CLOSED_LIMIT, closed).unwrap();
    }
}
