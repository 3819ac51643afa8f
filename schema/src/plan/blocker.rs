//! Differences that the plan cannot resolve, and why.

use steep_protocol::TableName;
use steep_protocol::message::schema::{Change, ObjectKind, SchemaDifference, Subject};

use super::Planner;
use super::object::more_labels;
use crate::cut::holds_cut;
use crate::text::qualified;

/// Why a difference has no statement, and what the operator can do, each as a sentence without a
/// full stop.
#[must_use]
pub fn blocker(difference: &SchemaDifference) -> (&'static str, &'static str) {
    if holds_cut(&difference.local) {
        return (
            "its definition is too long to be sent from one node to the other",
            "make this change on the target yourself",
        );
    }
    match difference.subject {
        Subject::Object(ObjectKind::Enum)
            if more_labels(&difference.local, &difference.remote).is_some() =>
        {
            (
                "a label cannot be used in the transaction that adds it, and other statements of the plan use it",
                "add the labels on the target yourself with ALTER TYPE … ADD VALUE, then try again",
            )
        }
        Subject::Object(ObjectKind::Extension) => (
            "types, defaults or indexes of the plan need this extension",
            "run CREATE EXTENSION on the target, in the same schema as on the source, then try again",
        ),
        _ => (
            "no statement changes this in place",
            "make this change on the target yourself, or start with a target database without tables",
        ),
    }
}

impl Planner<'_> {
    /// Removes statements that cannot run, and reports their differences as unplanned.
    pub(super) fn withdraw(&mut self) {
        self.withdraw_labels();
        self.miss_extensions();
        let mut lost = Vec::new();
        self.staged.retain(|staged| {
            let cut = holds_cut(&staged.statement.sql);
            if cut {
                lost.extend(staged.cause);
            }
            !cut
        });
        for difference in lost {
            self.give_up(difference);
        }
    }

    /// New enum labels that another statement of the transaction already uses.
    fn withdraw_labels(&mut self) {
        for labels in std::mem::take(&mut self.labels) {
            let used = self.staged.iter().any(|staged| {
                let own = staged.cause == Some(labels.difference);
                !own && qualified(&staged.statement.sql).contains(&labels.name)
                    && labels
                        .labels
                        .iter()
                        .any(|l| staged.statement.sql.contains(l.as_str()))
            });
            if used {
                self.staged.retain(|s| s.cause != Some(labels.difference));
                self.give_up(labels.difference);
            }
        }
    }

    /// Extensions that the target lacks and that statements need.
    fn miss_extensions(&mut self) {
        let comparison = self.comparison;
        let missing = comparison.objects.iter().filter(|d| {
            d.subject == Subject::Object(ObjectKind::Extension) && d.change == Change::Missing
        });
        let missing: Vec<&SchemaDifference> = missing.collect();
        if missing.is_empty() {
            return;
        }
        let used: Vec<TableName> = self
            .staged
            .iter()
            .flat_map(|staged| qualified(&staged.statement.sql))
            .collect();
        for difference in missing {
            let extension = difference.name.as_deref().unwrap_or_default();
            let needed = self.source.extension_members().any(|member| {
                let name = member
                    .schema
                    .as_ref()
                    .and_then(|schema| TableName::new(schema.as_str(), member.name.as_str()).ok());
                member.definition == extension && name.is_some_and(|name| used.contains(&name))
            });
            if needed {
                self.give_up(difference);
            }
        }
    }
}
