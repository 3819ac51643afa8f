//! Which objects a filter leaves out with the tables it excludes, and which it takes along with those it
//! includes: two walks over PostgreSQL's own dependencies. Pure.
//!
//! An object is left out where it could not be created: it, or a part that is created with it (a view's
//! query, a column's default, a check), depends on something left out. An object with a statement of its
//! own, such as a foreign key or trigger, is left out alone. Policies stay: leaving one out is a question
//! of rights, decided elsewhere.

use std::collections::{HashMap, HashSet, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Object {
    pub(super) class: u32,
    pub(super) oid: u32,
}

/// Catalogs, by their fixed oids (`pg_class.dat` and the headers in `catalog/`).
pub(super) mod class {
    pub(crate) const TYPE: u32 = 1247;
    pub(crate) const RELATION: u32 = 1259;
    pub(crate) const SERVER: u32 = 1417;
    pub(crate) const USER_MAPPING: u32 = 1418;
    pub(crate) const ACCESS_METHOD: u32 = 2601;
    pub(crate) const OPERATOR_OF_FAMILY: u32 = 2602;
    pub(crate) const FUNCTION_OF_FAMILY: u32 = 2603;
    pub(crate) const DEFAULT: u32 = 2604;
    pub(crate) const CAST: u32 = 2605;
    pub(crate) const CONSTRAINT: u32 = 2606;
    pub(crate) const LANGUAGE: u32 = 2612;
    pub(crate) const SCHEMA: u32 = 2615;
    pub(crate) const FOREIGN_DATA_WRAPPER: u32 = 2328;
    pub(crate) const EXTENSION: u32 = 3079;
    pub(crate) const POLICY: u32 = 3256;
    pub(crate) const EVENT_TRIGGER: u32 = 3466;
    pub(crate) const TRANSFORM: u32 = 3576;
    pub(crate) const PUBLICATION: u32 = 6104;
    pub(crate) const PUBLISHED_RELATION: u32 = 6106;
    pub(crate) const PUBLISHED_SCHEMA: u32 = 6237;
    pub(crate) const DEFAULT_PRIVILEGES: u32 = 826;
}

/// Catalogs whose objects are in no schema, so that a dump of chosen schemas omits them.
const WITHOUT_SCHEMA: [u32; 7] = [
    class::SERVER,
    class::USER_MAPPING,
    class::ACCESS_METHOD,
    class::CAST,
    class::LANGUAGE,
    class::FOREIGN_DATA_WRAPPER,
    class::TRANSFORM,
];

/// Dependants that exclude nothing: they are not dumped, or are judged elsewhere.
const IGNORED: [u32; 6] = [
    class::POLICY,
    class::EVENT_TRIGGER,
    class::PUBLICATION,
    class::PUBLISHED_RELATION,
    class::PUBLISHED_SCHEMA,
    class::DEFAULT_PRIVILEGES,
];

/// `pg_depend.deptype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dependence {
    /// `n`
    Normal,
    /// `a`: dropped with it.
    Auto,
    /// `i`: part of how it is created.
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Table {
        partition: bool,
        partitioned: bool,
    },
    /// A view, materialised or not, or a sequence.
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) needs: HashMap<Object, Vec<(Object, Dependence)>>,
    pub(super) needed_by: HashMap<Object, Vec<(Object, Dependence)>>,
    pub(super) relations: HashMap<u32, Relation>,
    /// Constraints written inside `CREATE TABLE` and `CREATE DOMAIN`.
    pub(super) checks: HashSet<u32>,
    /// Extension members, which the extension creates.
    pub(super) members: HashSet<Object>,
}

/// What the filter chooses.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Relations excluded by name or schema.
    pub(super) excluded: Vec<Object>,
    /// Included schemas; `None` for all.
    pub(super) schemas: HashSet<u32>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) left_out: HashSet<Object>,
    /// Everything to create; `None` is all but what is left out.
    pub(super) kept: Option<HashSet<Object>>,
    /// The left-out objects to report, in order.
    pub(super) missed: Vec<Object>,
    /// Admitted tables that cannot be created, in order.
    pub(super) split: Vec<Object>,
    /// Taken along from outside the included schemas, in order.
    pub(super) along: Vec<Object>,
}

impl Graph {
    pub(super) fn add(&mut self, from: Object, to: Object, how: Dependence) {
        if from != to {
            self.needs.entry(from).or_default().push((to, how));
            self.needed_by.entry(to).or_default().push((from, how));
        }
    }

    fn needs(&self, object: Object) -> impl Iterator<Item = (Object, Dependence)> + '_ {
        self.needs.get(&object).into_iter().flatten().copied()
    }

    fn needed_by(&self, object: Object) -> impl Iterator<Item = (Object, Dependence)> + '_ {
        self.needed_by.get(&object).into_iter().flatten().copied()
    }

    pub(super) fn choose(&self, chosen: &Chosen) -> Outcome {
        let left_out = self.left_out(&chosen.excluded);
        let kept = (!chosen.schemas.is_empty()).then(|| self.kept(&chosen.schemas, &left_out));
        let excluded: HashSet<Object> = chosen.excluded.iter().copied().collect();
        let is_table = |object: Object| {
            object.class == class::RELATION
                && matches!(
                    self.relations.get(&object.oid),
                    Some(Relation::Table { .. })
                )
        };
        let in_scope = |object: Object| {
            chosen.schemas.is_empty()
                || self
                    .schema_of(object)
                    .is_some_and(|schema| chosen.schemas.contains(&schema))
        };
        let whole = |object: Object| {
            !self
                .needs(object)
                .any(|(to, how)| how != Dependence::Normal && left_out.contains(&to))
        };
        let candidates = left_out
            .iter()
            .copied()
            .filter(|object| !excluded.contains(object) && in_scope(*object));
        let (split, missed): (Vec<_>, Vec<_>) = candidates.partition(|object| is_table(*object));
        let missed = missed.into_iter().filter(|object| whole(*object));
        let along = kept.iter().flatten().copied().filter(|object| {
            self.schema_of(*object)
                .is_some_and(|schema| !chosen.schemas.contains(&schema))
                && self.needs(*object).all(|(to, how)| {
                    how == Dependence::Normal
                        || !kept.as_ref().is_some_and(|kept| kept.contains(&to))
                })
        });
        let mut outcome = Outcome {
            missed: missed.collect(),
            along: along.collect(),
            split,
            kept,
            left_out,
        };
        for list in [&mut outcome.missed, &mut outcome.along, &mut outcome.split] {
            list.sort();
        }
        outcome
    }

    /// Whether an object is written inside another's statement.
    fn is_inline(&self, object: Object) -> bool {
        match object.class {
            class::DEFAULT | class::OPERATOR_OF_FAMILY | class::FUNCTION_OF_FAMILY => true,
            class::CONSTRAINT => self.checks.contains(&object.oid),
            _ => false,
        }
    }

    /// A partition is created by itself and attached afterwards.
    fn is_attachment(&self, from: Object, to: Object) -> bool {
        let relation = |object: Object| {
            (object.class == class::RELATION)
                .then(|| self.relations.get(&object.oid))
                .flatten()
        };
        matches!(
            (relation(from), relation(to)),
            (
                Some(Relation::Table {
                    partition: true,
                    ..
                }),
                Some(Relation::Table {
                    partitioned: true,
                    ..
                })
            )
        )
    }

    fn left_out(&self, excluded: &[Object]) -> HashSet<Object> {
        let mut out: HashSet<Object> = excluded.iter().copied().collect();
        let mut queue: VecDeque<Object> = excluded.iter().copied().collect();
        while let Some(object) = queue.pop_front() {
            let dependents = self.needed_by(object).filter(|(from, _)| {
                !IGNORED.contains(&from.class)
                    && !self.members.contains(from)
                    && !self.is_attachment(*from, object)
            });
            // What it is a part of cannot be created without it.
            let wholes = self.needs(object).filter(|(_, how)| {
                *how == Dependence::Internal || (*how == Dependence::Auto && self.is_inline(object))
            });
            for (next, _) in dependents.chain(wholes) {
                let container = [class::SCHEMA, class::EXTENSION].contains(&next.class);
                if !container && out.insert(next) {
                    queue.push_back(next);
                }
            }
        }
        out
    }

    /// Everything in those schemas, what belongs to it, and what it needs.
    fn kept(&self, schemas: &HashSet<u32>, left_out: &HashSet<Object>) -> HashSet<Object> {
        let mut kept = HashSet::new();
        let mut queue = VecDeque::new();
        let admissible = |object: &Object| {
            !left_out.contains(object)
                && !self.members.contains(object)
                && object.class != class::EXTENSION
        };
        for schema in schemas {
            let schema = Object {
                class: class::SCHEMA,
                oid: *schema,
            };
            kept.insert(schema);
            let within = self.needed_by(schema).map(|(from, _)| from);
            for object in within.filter(admissible) {
                if kept.insert(object) {
                    queue.push_back((object, true));
                }
            }
        }
        while let Some((object, own)) = queue.pop_front() {
            let parts = self.needed_by(object).filter(|(from, how)| {
                *how != Dependence::Normal
                    && !self.is_attachment(*from, object)
                    && (own
                        || self.is_inline(*from)
                        || *how == Dependence::Internal
                        || from.class == class::TYPE)
            });
            let parts = parts.map(|(part, _)| (part, own));
            let needs = self.needs(object).map(|(to, _)| (to, false));
            for (next, own) in parts.chain(needs) {
                if admissible(&next) && kept.insert(next) {
                    // Needing one object of a schema does not take the others along.
                    if next.class != class::SCHEMA {
                        queue.push_back((next, own));
                    }
                }
            }
        }
        // All extensions come, each into its schema.
        let extensions = self.needs.iter();
        let extensions = extensions.filter(|(object, _)| object.class == class::EXTENSION);
        let homes = extensions.flat_map(|(_, needs)| needs.iter().map(|(to, _)| *to));
        kept.extend(homes.filter(|home| home.class == class::SCHEMA));
        self.keep_conversions(&mut kept, left_out);
        kept
    }

    /// Casts and transforms between kept objects, on which nothing depends.
    fn keep_conversions(&self, kept: &mut HashSet<Object>, left_out: &HashSet<Object>) {
        let conversions = self.needs.keys().copied().filter(|object| {
            [class::CAST, class::TRANSFORM].contains(&object.class)
                && !left_out.contains(object)
                && !self.members.contains(object)
        });
        let usable: Vec<Object> = conversions
            .filter(|object| {
                self.needs(*object)
                    .all(|(to, _)| kept.contains(&to) || self.members.contains(&to))
            })
            .collect();
        kept.extend(usable);
    }

    /// Its own schema, or that of what it belongs to.
    fn schema_of(&self, object: Object) -> Option<u32> {
        /// A trigger belongs to a constraint, which belongs to a table.
        const DEPTH_MAX: usize = 4;
        let mut at = object;
        for _ in 0..DEPTH_MAX {
            let schema = self.needs(at).find(|(to, _)| to.class == class::SCHEMA);
            if let Some((schema, _)) = schema {
                return Some(schema.oid);
            }
            at = self
                .needs(at)
                .find(|(_, how)| *how != Dependence::Normal)?
                .0;
        }
        None
    }
}

impl Outcome {
    /// Whether to create an object of the dump.
    pub(super) fn admits(&self, object: Object) -> bool {
        object.class == class::EXTENSION
            || match &self.kept {
                Some(kept) => kept.contains(&object),
                None => !self.left_out.contains(&object),
            }
    }

    /// The schemas of everything to create; `None` where some of it is in no schema.
    pub(super) fn schemas(&self) -> Vec<u32> {
        let Some(kept) = &self.kept else {
            return Vec::new();
        };
        if kept
            .iter()
            .any(|object| WITHOUT_SCHEMA.contains(&object.class))
        {
            return Vec::new();
        }
        let schemas = kept.iter().filter(|object| object.class == class::SCHEMA);
        schemas.map(|schema| schema.oid).collect()
    }
}

#[cfg(test)]
mod tests;
