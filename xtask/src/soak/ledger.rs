//! Whether a part that was committed is copied again. The target's ledger has each part with the time of its
//! commit, so a part with another time was copied twice; the coordinator's log has each table that is
//! complete. Only a job that starts over may do either.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;

use super::watch::{self, Position};
use super::world::World;

const PARTS: &str = "SELECT job, epoch, part, schema_name || '.' || table_name, finished_at::text
    FROM steep_repl.copy_ledger";

/// What the ledgers have shown so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// When each part was committed, by node, job, epoch and part.
    parts: BTreeMap<[String; 4], String>,
    /// How many jobs had started over by then.
    restarts: usize,
}

impl Ledger {
    /// Compares the ledgers of all targets with what they were. One that cannot be read now is read later.
    ///
    /// # Errors
    /// A part was copied twice.
    pub(super) fn look(&mut self, world: &World) -> Result<()> {
        let nodes = world.cluster.nodes().iter().skip(1);
        let mut seen = BTreeMap::new();
        for node in nodes {
            // Before the first job there is no ledger, and a server may be away.
            for row in node.database().rows(PARTS).unwrap_or_default() {
                if let [job, epoch, part, _, at] = row.as_slice() {
                    let key = [node.name(), job, epoch, part].map(str::to_owned);
                    seen.insert(key, at.clone());
                }
            }
        }
        // After the ledgers: a job that starts over in between is not blamed.
        let restarts = count(world, "init.restarted");
        if restarts != self.restarts {
            self.restarts = restarts;
            self.parts.clear();
        }
        self.add(seen)
    }

    fn add(&mut self, seen: BTreeMap<[String; 4], String>) -> Result<()> {
        for (key, at) in seen {
            let before = self.parts.insert(key.clone(), at.clone());
            if let Some(before) = before
                && before != at
            {
                let [node, job, epoch, part] = key;
                bail!(
                    "part {part} of epoch {epoch} of job {job} was committed on {node} at {before} and again at {at}"
                );
            }
        }
        Ok(())
    }

    /// Compares the tables that were complete, in the whole log of the coordinator.
    ///
    /// # Errors
    /// A table was complete twice in one job that did not start over.
    pub(super) fn tables(world: &World) -> Result<()> {
        let lines = watch::lines(&world.coordinator_log(), Position::default());
        twice(lines.iter().map(|(line, _)| line))
    }
}

fn count(world: &World, event: &str) -> usize {
    let lines = watch::lines(&world.coordinator_log(), Position::default());
    lines
        .iter()
        .filter(|(line, _)| line["event"] == event)
        .count()
}

fn twice<'a>(lines: impl Iterator<Item = &'a Value>) -> Result<()> {
    let mut complete = BTreeMap::new();
    for line in lines {
        let job = line["job_id"].as_str().unwrap_or_default().to_owned();
        if line["event"] == "init.restarted" {
            complete.retain(|(of, _), _| *of != job);
        }
        if line["event"] == "init.table_complete" {
            let table = line["table"].as_str().unwrap_or_default().to_owned();
            let at = line["timestamp"].as_str().unwrap_or_default().to_owned();
            if let Some(before) = complete.insert((job.clone(), table.clone()), at.clone()) {
                bail!("{table} was complete at {before} and again at {at}, in job {job}");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_part_with_another_time_of_its_commit_was_copied_twice() {
        let part = |n: &str, at: &str| {
            let key = ["node_b", "job", "0", n].map(str::to_owned);
            BTreeMap::from([(key, at.to_owned())])
        };
        let mut ledger = Ledger::default();
        ledger.add(part("1", "12:00")).unwrap();
        ledger.add(part("2", "12:01")).unwrap();
        ledger.add(part("1", "12:00")).unwrap();
        assert!(ledger.add(part("1", "12:02")).is_err());
    }

    #[test]
    fn a_table_is_complete_once_unless_its_job_starts_over() {
        let line =
            |event: &str, table: &str| json!({"event": event, "job_id": "j", "table": table});
        let complete = |table| line("init.table_complete", table);
        assert!(twice([complete("a"), complete("b")].iter()).is_ok());
        assert!(twice([complete("a"), complete("a")].iter()).is_err());
        let again = line("init.restarted", "");
        assert!(twice([complete("a"), again, complete("a")].iter()).is_ok());
    }
}
