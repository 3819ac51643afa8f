//! PostgreSQL's rules for changes of a published table: whether INSERT, UPDATE and DELETE succeed on the
//! source, and whether the target's apply worker can apply them. Pure; each rule names its place in
//! PostgreSQL's source. All of them were verified on 15, 17 and 18.
//!
//! The target's tables are assumed to equal the source's; the comparison of schemas reports where they
//! differ.

use steep_protocol::message::identity::{
    IdentityTraits, KeyColumns, MissingIdentity, PrimaryKey, RowIdentity,
};

/// The first version that refuses a change whose old row would be sent without a column of its identity.
const GENERATED_IDENTITY_REFUSED_SINCE: u32 = 180_000;

/// The first version whose subscriber also needs the columns of a deferrable primary key.
const DEFERRABLE_KEY_WANTED_SINCE: u32 = 170_000;

/// A statement that changes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statement {
    Insert,
    Update,
    Delete,
}

/// The two servers, as `server_version_num`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) source: u32,
    pub(super) target: u32,
}

/// What happens to a statement once the table is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// It succeeds and is applied on the target.
    Fine,
    /// It succeeds on the source, and the target cannot apply it.
    StopsApply(ApplyObstacle),
    /// It fails on the source, in the application that runs it.
    BreaksSource(SourceObstacle),
}

/// Why the source refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SourceObstacle {
    /// The table has no replica identity.
    NoIdentity(MissingIdentity),
    /// `REPLICA IDENTITY FULL` with a generated column.
    GeneratedInFull,
    /// A key with a generated column.
    GeneratedInKey,
}

/// Why the target cannot find the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ApplyObstacle {
    /// A generated column of the key is not sent.
    KeyNotSent,
    /// Rows are compared column by column, and a column's type has no equality.
    NoEquality,
}

/// What happens to the statement on a table with these traits.
pub(super) fn fate(statement: Statement, traits: IdentityTraits, versions: Versions) -> Fate {
    match statement {
        // An INSERT carries no old row.
        Statement::Insert => Fate::Fine,
        // Both are published, and both identify the old row in the same way.
        Statement::Update | Statement::Delete => {
            match (
                refused_by_source(traits, versions.source),
                not_applied(traits, versions.target),
            ) {
                (Some(obstacle), _) => Fate::BreaksSource(obstacle),
                (None, Some(obstacle)) => Fate::StopsApply(obstacle),
                (None, None) => Fate::Fine,
            }
        }
    }
}

/// `CheckCmdReplicaIdentity` in execReplication.c, and from 18 on `pub_contains_invalid_column` in
/// publicationcmds.c. Our publications send no generated columns: the target computes them itself and
/// refuses to receive them (`logicalrep_report_missing_or_gen_attrs` in relation.c).
fn refused_by_source(traits: IdentityTraits, version: u32) -> Option<SourceObstacle> {
    let generated = traits.stored_columns || traits.virtual_columns;
    let checked = version >= GENERATED_IDENTITY_REFUSED_SINCE;
    match traits.identity {
        RowIdentity::Missing(why) => Some(SourceObstacle::NoIdentity(why)),
        RowIdentity::Full if checked && generated => Some(SourceObstacle::GeneratedInFull),
        RowIdentity::Key(KeyColumns::Generated) if checked => Some(SourceObstacle::GeneratedInKey),
        RowIdentity::Full | RowIdentity::Key(_) => None,
    }
}

/// `logicalrep_rel_mark_updatable` in relation.c, `FindReplTupleInLocalRel` in worker.c and
/// `tuples_equal` in execReplication.c: a row is found by the identity's index or the primary key,
/// whose columns must have been sent; without one, by comparing all columns that are not generated.
fn not_applied(traits: IdentityTraits, version: u32) -> Option<ApplyObstacle> {
    match traits.identity {
        RowIdentity::Key(KeyColumns::Ordinary) | RowIdentity::Missing(_) => None,
        RowIdentity::Key(KeyColumns::Generated) => Some(ApplyObstacle::KeyNotSent),
        RowIdentity::Full => match traits.primary_key {
            PrimaryKey::Immediate(KeyColumns::Ordinary) => None,
            PrimaryKey::Immediate(KeyColumns::Generated) => Some(ApplyObstacle::KeyNotSent),
            PrimaryKey::Deferrable(KeyColumns::Generated)
                if version >= DEFERRABLE_KEY_WANTED_SINCE =>
            {
                Some(ApplyObstacle::KeyNotSent)
            }
            PrimaryKey::Deferrable(_) | PrimaryKey::None => {
                (!traits.comparable).then_some(ApplyObstacle::NoEquality)
            }
        },
    }
}

/// A statement that gives such tables a working identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remedy {
    /// `REPLICA IDENTITY DEFAULT`: the primary key works.
    Default,
    /// `REPLICA IDENTITY FULL`.
    Full,
    /// A new key of columns that are not generated.
    NewKey,
}

/// The smallest change that works.
pub(super) fn remedy(traits: IdentityTraits, versions: Versions) -> Remedy {
    let full = IdentityTraits {
        identity: RowIdentity::Full,
        ..traits
    };
    if traits.primary_key == PrimaryKey::Immediate(KeyColumns::Ordinary) {
        Remedy::Default
    } else if fate(Statement::Update, full, versions) == Fate::Fine {
        Remedy::Full
    } else {
        Remedy::NewKey
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ApplyObstacle::{KeyNotSent, NoEquality};
    use Fate::{BreaksSource, Fine, StopsApply};
    use KeyColumns::{Generated, Ordinary};
    use PrimaryKey::{Deferrable, Immediate};
    use RowIdentity::{Full, Key, Missing};
    use SourceObstacle::{GeneratedInFull, GeneratedInKey, NoIdentity};

    const PAIRS: [(u32, u32); 6] = [(15, 15), (15, 18), (17, 17), (17, 18), (18, 17), (18, 18)];

    fn versions((source, target): (u32, u32)) -> Versions {
        Versions {
            source: source * 10_000,
            target: target * 10_000,
        }
    }

    fn traits(identity: RowIdentity, primary_key: PrimaryKey) -> IdentityTraits {
        IdentityTraits {
            identity,
            primary_key,
            stored_columns: false,
            virtual_columns: false,
            comparable: true,
        }
    }

    /// Results of an UPDATE on real servers: from 18, and from 15 and 17 to an old and a new target.
    #[test]
    fn the_rules_match_updates_on_real_servers() {
        let stored = |t| IdentityTraits {
            stored_columns: true,
            ..t
        };
        let virtual_ = |t| IdentityTraits {
            virtual_columns: true,
            ..t
        };
        let json = |t| IdentityTraits {
            comparable: false,
            ..t
        };
        let none = PrimaryKey::None;
        let old_fine = |since_18| [since_18, Fine, Fine];
        let always = |fate| [fate, fate, fate];
        let cases = [
            (traits(Key(Ordinary), Immediate(Ordinary)), always(Fine)),
            (
                stored(virtual_(json(traits(Key(Ordinary), Immediate(Ordinary))))),
                always(Fine),
            ),
            (traits(Full, none), always(Fine)),
            (json(traits(Full, none)), always(StopsApply(NoEquality))),
            (json(traits(Full, Immediate(Ordinary))), always(Fine)),
            (
                json(traits(Full, Deferrable(Ordinary))),
                always(StopsApply(NoEquality)),
            ),
            (traits(Full, Deferrable(Ordinary)), always(Fine)),
            (
                stored(traits(Full, none)),
                old_fine(BreaksSource(GeneratedInFull)),
            ),
            (
                virtual_(traits(Full, none)),
                old_fine(BreaksSource(GeneratedInFull)),
            ),
            (
                stored(traits(Full, Immediate(Ordinary))),
                old_fine(BreaksSource(GeneratedInFull)),
            ),
            (
                stored(traits(Full, Immediate(Generated))),
                [
                    BreaksSource(GeneratedInFull),
                    StopsApply(KeyNotSent),
                    StopsApply(KeyNotSent),
                ],
            ),
            (
                stored(traits(Full, Deferrable(Generated))),
                [BreaksSource(GeneratedInFull), Fine, StopsApply(KeyNotSent)],
            ),
            (
                stored(traits(Key(Generated), Immediate(Generated))),
                [
                    BreaksSource(GeneratedInKey),
                    StopsApply(KeyNotSent),
                    StopsApply(KeyNotSent),
                ],
            ),
        ];
        for (traits, [from_18, old_to_15, old_to_new]) in cases {
            for pair in PAIRS {
                let expected = match pair {
                    (18, _) => from_18,
                    (_, 15) => old_to_15,
                    _ => old_to_new,
                };
                for statement in [Statement::Update, Statement::Delete] {
                    let found = fate(statement, traits, versions(pair));
                    assert_eq!(found, expected, "{statement:?} {pair:?} {traits:?}");
                }
            }
        }
    }

    #[test]
    fn without_an_identity_every_source_version_refuses() {
        for why in [
            MissingIdentity::NoPrimaryKey,
            MissingIdentity::Deferrable,
            MissingIdentity::Nothing,
            MissingIdentity::IndexLost,
        ] {
            for pair in PAIRS {
                let table = traits(Missing(why), PrimaryKey::None);
                let found = fate(Statement::Delete, table, versions(pair));
                assert_eq!(found, BreaksSource(NoIdentity(why)));
            }
        }
    }

    /// Every combination: inserts always work, and so does a recommended identity.
    #[test]
    fn what_is_recommended_works() {
        let keys = [
            PrimaryKey::None,
            Immediate(Ordinary),
            Immediate(Generated),
            Deferrable(Ordinary),
            Deferrable(Generated),
        ];
        let mut identities = vec![Full, Key(Ordinary), Key(Generated)];
        identities.extend([
            Missing(MissingIdentity::NoPrimaryKey),
            Missing(MissingIdentity::Nothing),
        ]);
        for identity in identities {
            for primary_key in keys {
                for flags in 0..8 {
                    let table = IdentityTraits {
                        stored_columns: flags & 1 > 0,
                        virtual_columns: flags & 2 > 0,
                        comparable: flags & 4 > 0,
                        ..traits(identity, primary_key)
                    };
                    for pair in PAIRS {
                        let versions = versions(pair);
                        assert_eq!(fate(Statement::Insert, table, versions), Fine);
                        let after = match remedy(table, versions) {
                            Remedy::Default => Key(Ordinary),
                            Remedy::Full => Full,
                            Remedy::NewKey => continue,
                        };
                        let mended = IdentityTraits {
                            identity: after,
                            ..table
                        };
                        let found = fate(Statement::Update, mended, versions);
                        assert_eq!(found, Fine, "{pair:?} {table:?}");
                    }
                }
            }
        }
    }
}
