//! Whether a replication carries all its tables, judged from the observations of both agents.
//!
//! Pure. A table that entered the publication after its mark is complete on the target if PostgreSQL has
//! copied its rows, or if it was empty when the target subscribed to it. A table that was out of the
//! publication for a time is not, whatever it looks like now. A complete table is recorded with the two
//! transactions that added it, so it is judged again if it is removed and added again.

use serde::{Deserialize, Serialize};
use steep_protocol::message::agent::{
    AddedRows, AddedTable, EnumLabels, JoinedTable, Made, PublicationState, PublicationStatus,
    Published, RowsThere, Subscribed,
};
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::{JobId, NodeId, TableName};

/// Most tables and types named in one reason.
const NAMED: usize = 5;

/// Observations of the source that must have begun after the target subscribed to a table.
const LOOKS: u8 = 2;

/// A table that entered a replication later and is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// Its name.
    pub table: TableName,
    /// [`JoinedTable::by`]; 0 if it was in the publication from the start.
    pub joined_by: u64,
    /// [`AddedTable::by`].
    pub added_by: u64,
}

/// Tables that were created or attached since and are published, and that the target does not subscribe to.
#[must_use]
pub fn untaken(published: &Published, subscribed: &Subscribed) -> Vec<TableName> {
    let taken = |joined: &JoinedTable| subscribed.added.iter().any(|a| a.table == joined.table);
    let new = published.joined.iter();
    let new = new.filter(|joined| joined.made == Made::Since && !taken(joined));
    new.map(|joined| joined.table.clone()).collect()
}

/// What is wrong with a publication, to follow its name.
#[must_use]
pub fn publication(status: Option<&PublicationStatus>) -> Option<&'static str> {
    match status.map(|status| status.state) {
        None => Some("is gone"),
        Some(PublicationState::Altered) => Some("was altered after its slot was made"),
        Some(PublicationState::Unmarked) => Some("was recreated by somebody else"),
        Some(PublicationState::Sound) => None,
    }
}

/// Tables that the target subscribed to without a copy, and that may turn out empty on the source.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    waiting: Vec<Waiting>,
}

#[derive(Debug, Clone)]
struct Waiting {
    table: TableName,
    added_by: u64,
    look: u64,
    looks: u8,
}

impl Watched {
    /// Whether the source was observed often enough since the table was added.
    fn is_seen(&mut self, table: &AddedTable, look: u64) -> bool {
        let known = |w: &&mut Waiting| w.table == table.table && w.added_by == table.by;
        match self.waiting.iter_mut().find(known) {
            Some(waiting) => {
                if waiting.look != look {
                    waiting.look = look;
                    waiting.looks = waiting.looks.saturating_add(1);
                }
                waiting.looks >= LOOKS
            }
            None => {
                self.waiting.push(Waiting {
                    table: table.table.clone(),
                    added_by: table.by,
                    look,
                    looks: 0,
                });
                false
            }
        }
    }

    fn keep(&mut self, added: &[AddedTable]) {
        self.waiting.retain(|w| {
            added
                .iter()
                .any(|a| a.table == w.table && a.by == w.added_by)
        });
    }
}

/// Both ends of one replication, as last observed.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// The job that the subscription is named after.
    pub job: JobId,
    /// The source, and what it publishes.
    pub source: (&'a NodeId, &'a Published),
    /// The number of the source's observation.
    pub look: u64,
    /// The target, and what it subscribes to.
    pub target: (&'a NodeId, &'a Subscribed),
}

impl Ends<'_> {
    /// Judges every table that entered later and records complete ones in `complete`. Returns what is
    /// wrong, in words.
    pub fn judge(&self, complete: &mut Vec<Complete>, watched: &mut Watched) -> Vec<String> {
        let (published, subscribed) = (self.source.1, self.target.1);
        watched.keep(&subscribed.added);
        let mut unsure = Named::default();
        let mut untaken = Named::default();
        let mut copying = Named::default();
        for added in &subscribed.added {
            let joined = published.joined.iter().find(|j| j.table == added.table);
            match judge(added, joined, complete, watched, self.look) {
                Verdict::Complete => {}
                Verdict::Copying => copying.add(&added.table),
                Verdict::Unsure => unsure.add(&added.table),
            }
        }
        for joined in &published.joined {
            let taken = |a: &AddedTable| a.table == joined.table;
            match joined.made {
                _ if subscribed.added.iter().any(taken) => {}
                Made::Since => untaken.add(&joined.table),
                Made::Before => unsure.add(&joined.table),
            }
        }
        let unlisted = (published.joined_total + subscribed.added_total)
            .saturating_sub((published.joined.len() + subscribed.added.len()) as u64);
        unsure.count += unlisted;
        complete.retain(|c| subscribed.added.iter().any(|a| a.table == c.table));
        self.reasons(&untaken, &unsure, &copying)
    }

    fn reasons(&self, untaken: &Named, unsure: &Named, copying: &Named) -> Vec<String> {
        let (source, target) = (self.source.0, self.target.0);
        let refresh = format!(
            "run ALTER SUBSCRIPTION {} REFRESH PUBLICATION there, which copies its rows",
            ReplicationNames(self.job).name()
        );
        let mut reasons = Vec::new();
        if !untaken.is_empty() {
            reasons.push(format!(
                "{source} publishes tables that were created or attached since and that {target} does not subscribe to: \
                 {untaken}; steep-repl tables add --node {target} copies and follows them, or create each on {target}, empty, \
                 and {refresh}"
            ));
        }
        if !unsure.is_empty() {
            reasons.push(format!(
                "rows may be missing on {target}, because {source} did not always publish them, or {target} did not \
                 always subscribe to them: {unsure}; drop each on {target}, create it again, empty, and {refresh}, or \
                 initialise {target} again"
            ));
        }
        if !copying.is_empty() {
            reasons.push(format!("PostgreSQL copies rows to {target}: {copying}"));
        }
        reasons
    }
}

enum Verdict {
    Complete,
    Copying,
    Unsure,
}

fn judge(
    added: &AddedTable,
    joined: Option<&JoinedTable>,
    complete: &mut Vec<Complete>,
    watched: &mut Watched,
    look: u64,
) -> Verdict {
    let joined_by = joined.map_or(0, |j| j.by);
    let known = complete.iter().position(|c| c.table == added.table);
    if let Some(at) = known {
        let known = &complete[at];
        if known.added_by == added.by {
            if known.joined_by == joined_by {
                return Verdict::Complete;
            }
            // It has left the publication since.
            return Verdict::Unsure;
        }
        complete.remove(at);
    }
    let is_empty = joined.is_some_and(|j| j.rows == RowsThere::None);
    let proved = match added.rows {
        AddedRows::Copying => return Verdict::Copying,
        AddedRows::Copied => true,
        AddedRows::NotCopied => watched.is_seen(added, look) && is_empty,
    };
    if !proved {
        return Verdict::Unsure;
    }
    complete.push(Complete {
        table: added.table.clone(),
        joined_by,
        added_by: added.by,
    });
    Verdict::Complete
}

/// Enum types that lack labels on the target, where the first value with one stops the subscription.
#[must_use]
pub fn missing_labels(
    source: &[EnumLabels],
    target: &[EnumLabels],
    node: &NodeId,
) -> Option<String> {
    let mut named = Named::default();
    for there in source {
        let Some(here) = target.iter().find(|t| t.name == there.name) else {
            continue;
        };
        let missing = there.labels.iter().filter(|l| !here.labels.contains(l));
        let missing: Vec<String> = missing.take(NAMED).map(|l| format!("{l:?}")).collect();
        if !missing.is_empty() {
            named.add(&format!("{} ({})", there.name, missing.join(", ")));
        }
    }
    (!named.is_empty()).then(|| {
        format!(
            "enum types on {node} lack labels of the source's: {named}; add them there with ALTER TYPE … ADD VALUE"
        )
    })
}

/// The first few of many names.
#[derive(Debug, Default)]
struct Named {
    names: Vec<String>,
    count: u64,
}

impl Named {
    fn add(&mut self, name: &impl ToString) {
        self.count += 1;
        if self.names.len() < NAMED {
            self.names.push(name.to_string());
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names.join(", "))?;
        match self.count.saturating_sub(self.names.len() as u64) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;
    use steep_protocol::JobId;

    fn name(table: &str) -> TableName {
        TableName::new("app", table).unwrap()
    }

    fn joined(table: &str, made: Made, rows: RowsThere, by: u64) -> JoinedTable {
        JoinedTable {
            table: name(table),
            made,
            rows,
            by,
        }
    }

    fn added(table: &str, rows: AddedRows, by: u64) -> AddedTable {
        AddedTable {
            table: name(table),
            by,
            rows,
        }
    }

    #[derive(Default)]
    struct World {
        complete: Vec<Complete>,
        watched: Watched,
        look: u64,
    }

    impl World {
        /// What is wrong at the source's next observation.
        fn see(&mut self, joined: &[JoinedTable], added: &[AddedTable]) -> String {
            self.look += 1;
            let published = Published {
                job: JobId(1),
                mark: 0,
                joined: joined.to_vec(),
                joined_total: joined.len() as u64,
                appeared: Vec::new(),
                enums: Vec::new(),
            };
            let subscribed = Subscribed {
                job: JobId(1),
                mark: 0,
                added: added.to_vec(),
                added_total: added.len() as u64,
                enums: Vec::new(),
            };
            let (a, b) = (node("a"), node("b"));
            let ends = Ends {
                job: JobId(1),
                source: (&a, &published),
                look: self.look,
                target: (&b, &subscribed),
            };
            ends.judge(&mut self.complete, &mut self.watched).join("; ")
        }
    }

    #[test]
    fn a_new_partition_is_wrong_until_its_rows_are_copied() {
        let mut world = World::default();
        let new = [joined("p", Made::Since, RowsThere::Some, 10)];
        assert!(
            world
                .see(&new, &[])
                .contains("does not subscribe to: app.p")
        );
        let copying = world.see(&new, &[added("p", AddedRows::Copying, 5)]);
        assert!(copying.contains("PostgreSQL copies"), "{copying}");
        assert_eq!(world.see(&new, &[added("p", AddedRows::Copied, 6)]), "");
        // Detached and attached again, without a new copy.
        let again = [joined("p", Made::Since, RowsThere::Some, 11)];
        let wrong = world.see(&again, &[added("p", AddedRows::Copied, 6)]);
        assert!(wrong.contains("rows may be missing on b"), "{wrong}");
        assert_eq!(world.see(&again, &[added("p", AddedRows::Copied, 9)]), "");
    }

    #[test]
    fn rows_that_were_not_copied_are_missing_unless_the_table_was_empty() {
        let taken = [added("p", AddedRows::NotCopied, 5)];
        let mut world = World::default();
        let full = [joined("p", Made::Since, RowsThere::Some, 10)];
        for _ in 0..9 {
            assert!(world.see(&full, &taken).contains("rows may be missing"));
        }
        // Emptied later: whatever was skipped is gone from the source too.
        let mut world = World::default();
        let empty = [joined("p", Made::Since, RowsThere::None, 10)];
        assert_ne!(world.see(&empty, &taken), "", "this one may be older");
        assert_ne!(
            world.see(&empty, &taken),
            "",
            "this one may have begun before"
        );
        assert_eq!(world.see(&empty, &taken), "");
        assert_eq!(world.see(&full, &taken), "", "what comes now is replicated");
    }

    #[test]
    fn a_table_that_was_removed_and_added_again_needs_a_new_copy() {
        let mut world = World::default();
        let back = [joined("t", Made::Before, RowsThere::Some, 10)];
        for _ in 0..9 {
            assert!(world.see(&back, &[]).contains("rows may be missing"));
        }
        assert_eq!(world.see(&back, &[added("t", AddedRows::Copied, 9)]), "");
    }

    #[test]
    fn a_label_that_only_the_source_has_is_named() {
        let labels = |labels: &[&str]| {
            vec![EnumLabels {
                name: name("mood"),
                labels: labels.iter().map(|&l| l.to_owned()).collect(),
            }]
        };
        let b = node("b");
        let (few, many) = (labels(&["sad"]), labels(&["sad", "ok"]));
        let missing = missing_labels(&many, &few, &b).unwrap();
        assert!(missing.contains("app.mood (\"ok\")"), "{missing}");
        assert_eq!(missing_labels(&few, &many, &b), None);
        assert_eq!(
            missing_labels(&many, &[], &b),
            None,
            "of another type there"
        );
    }
}
