//! Who follows whom: a graph of the nodes' lineages, whichever tool made the subscriptions.
//!
//! Pure. An edge leads from a node to each node whose database has the slot named by one of its
//! subscriptions. Databases are distinguished by identity, not by node name, so a database with two
//! names is one vertex.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use steep_protocol::message::lineage::{ChangeOrigin, Lineage, Sameness};
use steep_protocol::{JobId, NodeId};

/// What the coordinator knows beyond the facts that the two agents have just gathered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Around {
    /// Every node's lineage.
    pub nodes: Vec<Known>,
    /// Jobs and prepared slots that the coordinator knows.
    pub remembered: Vec<JobId>,
}

/// A node's lineage, as last reported by its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The node.
    pub node: NodeId,
    /// Its lineage.
    pub lineage: Lineage,
    /// How recent it is.
    pub sight: Sight,
}

/// How old a lineage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sight {
    /// A few seconds old: the agent has a session.
    Now,
    /// Of unknown age: its server may have restarted since.
    Before,
}

/// The graph of who follows whom.
#[derive(Debug, Default)]
pub struct Graph<'a> {
    nodes: BTreeMap<&'a NodeId, (&'a Lineage, Sight)>,
}

/// An edge from a node to the one whose changes it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// The node that applies the changes.
    pub node: &'a NodeId,
    /// The subscription that brings them.
    pub subscription: &'a str,
    /// Which changes the subscription receives.
    pub origin: ChangeOrigin,
    /// The node whose changes they are.
    pub upstream: &'a NodeId,
}

impl<'a> Graph<'a> {
    /// The graph of all known nodes; lineages in `fresh` replace older ones.
    #[must_use]
    pub fn new(around: &'a Around, fresh: [(&'a NodeId, &'a Lineage); 2]) -> Self {
        let known = around
            .nodes
            .iter()
            .map(|known| (&known.node, (&known.lineage, known.sight)));
        let fresh = fresh.map(|(node, lineage)| (node, (lineage, Sight::Now)));
        Self {
            nodes: known.chain(fresh).collect(),
        }
    }

    fn steps(&self, node: &'a NodeId) -> Vec<Step<'a>> {
        let Some((lineage, _)) = self.nodes.get(node) else {
            return Vec::new();
        };
        let mut steps = Vec::new();
        for subscription in &lineage.subscriptions {
            let Some(slot) = &subscription.slot else {
                continue;
            };
            for (upstream, (of, _)) in &self.nodes {
                // A database does not subscribe to itself.
                if of.slots.contains(slot) && !self.is(node, upstream) {
                    steps.push(Step {
                        node,
                        subscription: &subscription.name,
                        origin: subscription.origin,
                        upstream,
                    });
                }
            }
        }
        steps
    }

    /// The subscriptions of other nodes that follow `upstream` directly.
    #[must_use]
    pub fn followers(&self, upstream: &NodeId) -> Vec<Step<'a>> {
        let others = self.nodes.keys().filter(|node| !self.is(node, upstream));
        others
            .flat_map(|node| self.steps(node))
            .filter(|step| self.is(step.upstream, upstream))
            .collect()
    }

    /// The shortest path by which changes made at `upstream` reach `node`; empty if none is known.
    #[must_use]
    pub fn path(&self, node: &'a NodeId, upstream: &NodeId) -> Vec<Step<'a>> {
        let mut came_by: BTreeMap<&NodeId, Step<'a>> = BTreeMap::new();
        let mut waiting = VecDeque::from([node]);
        while let Some(at) = waiting.pop_front() {
            for step in self.steps(at) {
                if step.upstream == node || came_by.contains_key(step.upstream) {
                    continue;
                }
                came_by.insert(step.upstream, step);
                if self.is(step.upstream, upstream) {
                    return Self::walked(&came_by, step.upstream, node);
                }
                waiting.push_back(step.upstream);
            }
        }
        Vec::new()
    }

    fn walked(
        came_by: &BTreeMap<&NodeId, Step<'a>>,
        end: &NodeId,
        start: &NodeId,
    ) -> Vec<Step<'a>> {
        let mut path = Vec::new();
        let mut at = end;
        while at != start {
            let Some(step) = came_by.get(at) else { break };
            path.push(*step);
            at = step.node;
        }
        path.reverse();
        path
    }

    /// Whether both names belong to one database. If one is out of sight, it may be a physical copy of the
    /// other or the same database before a restart; then they count as one.
    fn is(&self, one: &NodeId, other: &NodeId) -> bool {
        let lineages = self.nodes.get(one).zip(self.nodes.get(other));
        one == other
            || lineages.is_some_and(|(one, other)| {
                let identities = one.0.identity.zip(other.0.identity);
                let sameness = identities.map(|(one, other)| one.compare(&other));
                match (sameness, one.1, other.1) {
                    (Some(Sameness::Same), ..) => true,
                    (Some(Sameness::SameOrCopy), Sight::Now, Sight::Now) => false,
                    (Some(Sameness::SameOrCopy), ..) => true,
                    (Some(Sameness::Different) | None, ..) => false,
                }
            })
    }

    /// Other names of that node's database.
    #[must_use]
    pub fn aliases(&self, node: &NodeId) -> Vec<&'a NodeId> {
        self.nodes
            .keys()
            .filter(|other| **other != node && self.is(node, other))
            .copied()
            .collect()
    }

    /// The nodes whose database has the slot.
    #[must_use]
    pub fn with_slot(&self, slot: &str) -> Vec<&'a NodeId> {
        self.nodes
            .iter()
            .filter(|(_, (lineage, _))| lineage.slots.iter().any(|known| known == slot))
            .map(|(node, _)| *node)
            .collect()
    }

    /// Subscriptions of `node`, and of the nodes it follows, whose publisher is unknown.
    #[must_use]
    pub fn unknown_upstreams(&self, node: &'a NodeId) -> Vec<(&'a NodeId, &'a str)> {
        let mut seen = vec![node];
        let mut at = 0;
        let mut unknown = Vec::new();
        while let Some(node) = seen.get(at).copied() {
            at += 1;
            let steps = self.steps(node);
            let Some((lineage, _)) = self.nodes.get(node) else {
                continue;
            };
            for subscription in &lineage.subscriptions {
                let name = subscription.name.as_str();
                if !steps.iter().any(|step| step.subscription == name) {
                    unknown.push((node, name));
                }
            }
            for step in steps {
                if !seen.contains(&step.upstream) {
                    seen.push(step.upstream);
                }
            }
        }
        unknown
    }

    /// Slots of `node` that no known subscription names: an unknown server follows it by them.
    #[must_use]
    pub fn unknown_followers(&self, node: &NodeId) -> Vec<&'a str> {
        let Some((lineage, _)) = self.nodes.get(node) else {
            return Vec::new();
        };
        let known = |slot: &&str| {
            let mut all = self.nodes.values().flat_map(|(of, _)| &of.subscriptions);
            all.any(|subscription| subscription.slot.as_deref() == Some(slot))
        };
        let slots = lineage.slots.iter().map(String::as_str);
        slots.filter(|slot| !known(slot)).collect()
    }

    /// Subscriptions of `node` that do not follow `upstream`.
    #[must_use]
    pub fn others(&self, node: &'a NodeId, upstream: &NodeId) -> Vec<&'a str> {
        let Some((lineage, _)) = self.nodes.get(node) else {
            return Vec::new();
        };
        let steps = self.steps(node);
        let from_it = |name: &str| {
            let mut own = steps
                .iter()
                .filter(|step| step.subscription == name)
                .peekable();
            own.peek().is_some() && own.all(|step| self.is(step.upstream, upstream))
        };
        let names = lineage.subscriptions.iter().map(|s| s.name.as_str());
        names.filter(|name| !from_it(name)).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use steep_protocol::message::lineage::{Identity, SubscriptionSeen, Tool};

    use super::*;

    pub(crate) fn id(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    /// A database with these slots, and a subscription to each slot in `subscribes`.
    pub(crate) fn lineage(database: u32, slots: &[&str], subscribes: &[&str]) -> Lineage {
        Lineage {
            identity: Some(Identity {
                system: 7,
                database,
                timeline: 1,
                started: 100,
            }),
            slots: slots.iter().map(|slot| (*slot).to_owned()).collect(),
            subscriptions: subscribes
                .iter()
                .map(|slot| SubscriptionSeen {
                    name: format!("sub_{slot}"),
                    tool: Tool::PostgreSql,
                    slot: Some((*slot).to_owned()),
                    origin: ChangeOrigin::Any,
                })
                .collect(),
            ..Lineage::default()
        }
    }

    pub(crate) fn around(nodes: &[(&str, Lineage)]) -> Around {
        let known = |(node, lineage): &(&str, Lineage)| Known {
            node: id(node),
            lineage: lineage.clone(),
            sight: Sight::Before,
        };
        Around {
            nodes: nodes.iter().map(known).collect(),
            remembered: Vec::new(),
        }
    }

    fn path(nodes: &[(&str, Lineage)], from: &str, to: &str) -> Vec<String> {
        let around = around(nodes);
        let (from, to) = (id(from), id(to));
        let nothing = Lineage::default();
        let of = |node: &NodeId| {
            let found = around.nodes.iter().find(|known| known.node == *node);
            found.map_or(&nothing, |known| &known.lineage)
        };
        let graph = Graph::new(&around, [(&from, of(&from)), (&to, of(&to))]);
        let path = graph.path(&from, &to);
        path.iter().map(|step| step.upstream.to_string()).collect()
    }

    #[test]
    fn a_path_leads_through_every_node_of_a_chain() {
        let nodes = [
            ("a", lineage(1, &["to_b"], &[])),
            ("b", lineage(2, &["to_c"], &["to_b"])),
            ("c", lineage(3, &[], &["to_c"])),
        ];
        assert_eq!(path(&nodes, "c", "a"), ["b", "a"]);
        assert_eq!(path(&nodes, "b", "a"), ["a"]);
        assert!(path(&nodes, "a", "c").is_empty());
    }

    #[test]
    fn a_database_under_another_name_is_the_same_place() {
        // x was observed before the slot was made.
        let nodes = [
            ("a", lineage(1, &["to_b"], &[])),
            ("b", lineage(2, &[], &["to_b"])),
            ("x", lineage(1, &[], &[])),
        ];
        assert_eq!(path(&nodes, "b", "x"), ["a"]);
    }

    #[test]
    fn a_circle_is_walked_once() {
        let nodes = [
            ("a", lineage(1, &["to_b"], &["to_a"])),
            ("b", lineage(2, &["to_a"], &["to_b"])),
            ("x", lineage(3, &[], &[])),
        ];
        assert!(path(&nodes, "a", "x").is_empty());
        assert_eq!(path(&nodes, "a", "b"), ["b"]);
    }

    #[test]
    fn unknown_publishers_and_followers_are_named() {
        let around = around(&[
            ("b", lineage(2, &["to_c", "to_whom"], &["from_whom"])),
            ("c", lineage(3, &[], &["to_c"])),
        ]);
        let (b, c) = (&around.nodes[0], &around.nodes[1]);
        let graph = Graph::new(&around, [(&b.node, &b.lineage), (&c.node, &c.lineage)]);
        assert_eq!(
            graph.unknown_upstreams(&c.node),
            [(&b.node, "sub_from_whom")]
        );
        assert_eq!(graph.unknown_followers(&b.node), ["to_whom"]);
        assert_eq!(graph.others(&c.node, &b.node), Vec::<&str>::new());
        assert_eq!(graph.others(&b.node, &c.node), ["sub_from_whom"]);
    }

    #[test]
    fn a_physical_copy_is_distinguished_only_while_both_are_seen() {
        let mut copy = lineage(1, &[], &[]);
        copy.identity.as_mut().unwrap().started = 200;
        let original = lineage(1, &["to_b"], &[]);
        let follower = lineage(2, &[], &["to_b"]);
        let (b, x) = (id("b"), id("x"));
        for (sight, steps) in [(Sight::Now, 0), (Sight::Before, 1)] {
            let around = Around {
                nodes: vec![Known {
                    node: id("a"),
                    lineage: original.clone(),
                    sight,
                }],
                remembered: Vec::new(),
            };
            let graph = Graph::new(&around, [(&b, &follower), (&x, &copy)]);
            assert_eq!(graph.path(&b, &x).len(), steps, "{sight:?}");
        }
    }
}
