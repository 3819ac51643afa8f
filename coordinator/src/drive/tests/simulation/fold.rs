//! Epochs become one, as in `agent/src/replication/fold.rs`.

use std::collections::BTreeMap;

use steep_protocol::Fault;
use steep_protocol::message::agent::{EarlierEpoch, Outcome, PeerAddress};
use steep_protocol::message::handover::Replication;

use super::agent::Running;
use super::postgres::Subscription;
use super::source::{failed, transient};
use super::world::{After, Cluster, Done, Next};

impl Cluster {
    /// Stages of each epoch: look, wait, use its own publication, stop, move, wait, start again, unsubscribe, drop.
    pub(super) fn fold(
        &mut self,
        n: usize,
        run: &mut Running,
        source: &PeerAddress,
        earlier: &[EarlierEpoch],
    ) -> Result<Next, Fault> {
        let m = self.peer(source);
        let name = run.replication.name().as_str().to_owned();
        let stopped = format!("{name}_stopped");
        let Some(epoch) = earlier.get(run.tries as usize) else {
            return Ok(Done(Outcome::Done));
        };
        let old = &epoch.replication;
        let from = old.name().as_str().to_owned();
        match run.stage % 9 {
            0 => {
                let Some(own) = self.nodes[n].server.subscriptions.get_mut(&from) else {
                    // An earlier try has come this far.
                    run.stage += 7;
                    return Ok(After(50));
                };
                own.enabled = true;
                run.lsn = 0;
                run.waited = 0;
                run.stage += if own.publication == from { 2 } else { 0 };
                Ok(After(50))
            }
            1 => {
                self.reaches(n, m, run.job)?;
                self.asks_server(m)?;
                self.passes(m, run, old)
            }
            2 => {
                let die = self.dice.chance(300);
                let subscriptions = &mut self.nodes[n].server.subscriptions;
                let Some(own) = subscriptions.get_mut(&from) else {
                    return Err(failed("the subscription is not there"));
                };
                own.enabled = false;
                if die {
                    return Err(transient("the connection broke"));
                }
                own.position = own.position.max(run.lsn);
                own.publication = from;
                own.enabled = true;
                Ok(After(50))
            }
            3 => {
                let subscriptions = &mut self.nodes[n].server.subscriptions;
                if let Some(own) = subscriptions.get_mut(&name) {
                    own.enabled = false;
                }
                run.lsn = 0;
                run.waited = 0;
                Ok(After(100))
            }
            4 => {
                self.reaches(n, m, run.job)?;
                self.asks_server(m)?;
                self.move_tables(m, (old, &self.nodes[n].name.clone()), &name)?;
                Ok(After(50))
            }
            5 => {
                self.reaches(n, m, run.job)?;
                self.asks_server(m)?;
                self.passes(m, run, old)
            }
            6 => {
                self.reaches(n, m, run.job)?;
                self.asks_server(m)?;
                self.start_again(n, m, (&name, &stopped), &run.replication)
            }
            7 => {
                self.nodes[n].server.subscriptions.remove(&from);
                Ok(After(50))
            }
            _ => {
                self.reaches(n, m, run.job)?;
                self.asks_server(m)?;
                self.drop_replication(m, old);
                run.tries += 1;
                Ok(After(50))
            }
        }
    }

    /// Waits in this stage until the old subscription has passed a fence.
    fn passes(&mut self, m: usize, run: &mut Running, old: &Replication) -> Result<Next, Fault> {
        if self.passed(m, run, old)?.is_some() {
            run.waited = 0;
            return Ok(After(50));
        }
        run.waited += 200;
        if run.waited > 30_000 {
            return Err(transient("the old subscription is behind its source"));
        }
        run.stage -= 1;
        Ok(After(200))
    }

    fn move_tables(
        &mut self,
        m: usize,
        (old, target): (&Replication, &steep_protocol::NodeId),
        into: &str,
    ) -> Result<(), Fault> {
        let server = &mut self.nodes[m].server;
        let from = old.name().as_str().to_owned();
        if from != old.slot.as_str() {
            let note = server.notes.get(old.slot.as_str());
            if note.is_none_or(|note| note.target.as_ref() != Some(target)) {
                return Err(failed(format!("{from} is no epoch of the job")));
            }
        }
        let mut publications = server.publications().clone();
        let moved = publications.get_mut(&from).map(std::mem::take);
        if let Some(own) = publications.get_mut(into) {
            own.extend(moved.unwrap_or_default());
        }
        *server.publications_mut() = publications;
        Ok(())
    }

    fn start_again(
        &mut self,
        n: usize,
        m: usize,
        (name, stopped): (&str, &str),
        replication: &Replication,
    ) -> Result<Next, Fault> {
        let tables = self.nodes[m].server.publications().get(name).cloned();
        let tables = tables.ok_or_else(|| failed("the publication is not there"))?;
        let tables: BTreeMap<_, _> = tables.into_iter().map(|table| (table, Some(0))).collect();
        let subscriptions = &mut self.nodes[n].server.subscriptions;
        if !subscriptions.contains_key(stopped) {
            let Some(own) = subscriptions.remove(name) else {
                return Err(failed("the subscription is not there"));
            };
            subscriptions.insert(stopped.to_owned(), own);
            // Killed here, the next try finds it.
            if self.dice.chance(300) {
                return Err(transient("the connection broke"));
            }
        }
        let position = subscriptions[stopped].position;
        subscriptions
            .entry(name.to_owned())
            .or_insert(Subscription {
                slot: replication.slot.as_str().to_owned(),
                publication: name.to_owned(),
                enabled: false,
                position,
                tables,
            });
        subscriptions.remove(stopped);
        if let Some(own) = subscriptions.get_mut(name) {
            own.enabled = true;
        }
        Ok(After(50))
    }
}
