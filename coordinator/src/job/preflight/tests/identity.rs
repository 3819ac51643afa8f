//! Tables whose changes would fail on the source or on the target.

use steep_protocol::message::identity::{
    IdentityGroup, IdentityTraits, KeyColumns, MissingIdentity, PrimaryKey, RowIdentity,
};

use steep_protocol::message::job::SchemaMode;

use super::world::{World, healthy, some};
use super::{Error, Warning, walk};

/// Tables without any key.
pub(super) fn keyless(changed: bool) -> IdentityGroup {
    let identity = RowIdentity::Missing(MissingIdentity::NoPrimaryKey);
    group(identity, PrimaryKey::None, changed)
}

fn group(identity: RowIdentity, primary_key: PrimaryKey, changed: bool) -> IdentityGroup {
    IdentityGroup {
        traits: IdentityTraits {
            identity,
            primary_key,
            stored_columns: false,
            virtual_columns: false,
            comparable: true,
        },
        changed,
        tables: some("app.cart"),
    }
}

fn generated(identity: RowIdentity, primary_key: PrimaryKey) -> IdentityGroup {
    let mut group = group(identity, primary_key, false);
    group.traits.stored_columns = true;
    group
}

fn incomparable(primary_key: PrimaryKey, changed: bool) -> IdentityGroup {
    let mut group = group(RowIdentity::Full, primary_key, changed);
    group.traits.comparable = false;
    group
}

const GENERATED_KEY: PrimaryKey = PrimaryKey::Immediate(KeyColumns::Generated);
const ORDINARY_KEY: PrimaryKey = PrimaryKey::Immediate(KeyColumns::Ordinary);

#[test]
fn unusable_identities_are_errors_if_rows_are_known_to_change() {
    walk(&[
        ("no_replica_identity", Warning, |w| {
            w.source.identities = vec![keyless(false)];
        }),
        ("replica_identity_needed", Error, |w| {
            w.source.identities = vec![keyless(true)];
        }),
        ("replica_identity_equality", Warning, |w| {
            w.source.identities = vec![incomparable(PrimaryKey::None, false)];
        }),
        ("replica_identity_equality", Error, |w| {
            w.source.identities = vec![incomparable(PrimaryKey::None, true)];
        }),
        ("replica_identity_generated", Error, |w| {
            w.source.identities = vec![generated(RowIdentity::Full, ORDINARY_KEY)];
        }),
        ("replica_identity_generated", Error, |w| {
            let key = RowIdentity::Key(KeyColumns::Generated);
            w.source.identities = vec![generated(key, GENERATED_KEY)];
        }),
        ("replica_identity_not_sent", Warning, |w| {
            w.source.server.version = 150_004;
            let key = RowIdentity::Key(KeyColumns::Generated);
            w.source.identities = vec![generated(key, GENERATED_KEY)];
        }),
    ]);
}

#[test]
fn a_different_key_on_the_target_matters_if_its_schema_is_used_as_it_is() {
    fn other_key(w: &mut World) {
        w.target.user_tables = 1;
        w.target.unfindable = some("app.cart (no key)");
    }
    walk(&[("target_key", Warning, |w| {
        other_key(w);
        w.spec.schema_mode = SchemaMode::Manual;
    })]);
    let mut world = healthy();
    other_key(&mut world);
    assert_eq!(world.judge(), []);
}

#[test]
fn working_identities_yield_no_finding() {
    let quiet = |version: u32, group: IdentityGroup| {
        let mut world = healthy();
        world.source.server.version = version;
        world.source.identities = vec![group];
        assert_eq!(world.judge(), [], "{version}");
    };
    quiet(180_001, group(RowIdentity::Full, PrimaryKey::None, true));
    quiet(180_001, incomparable(ORDINARY_KEY, true));
    quiet(170_004, generated(RowIdentity::Full, PrimaryKey::None));
}

fn fix(spoil: impl FnOnce(&mut World)) -> String {
    let mut world = healthy();
    spoil(&mut world);
    let findings = world.judge();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings[0].fix.clone()
}

#[test]
fn full_is_recommended_only_where_it_works() {
    let full = "or ALTER TABLE … REPLICA IDENTITY FULL";
    assert!(fix(|w| w.source.identities = vec![keyless(true)]).contains(full));
    let mut computed = keyless(true);
    computed.traits.virtual_columns = true;
    assert!(!fix(|w| w.source.identities = vec![computed.clone()]).contains(full));
    let mut json = keyless(true);
    json.traits.comparable = false;
    assert!(!fix(|w| w.source.identities = vec![json]).contains(full));
    let keyed = fix(|w| w.source.identities = vec![generated(RowIdentity::Full, ORDINARY_KEY)]);
    assert!(keyed.contains("REPLICA IDENTITY DEFAULT"), "{keyed}");
}

#[test]
fn tables_with_one_fault_share_a_finding_and_all_are_counted() {
    let mut world = healthy();
    let mut other = keyless(true);
    other.traits.stored_columns = true;
    world.source.server.version = 170_004;
    world.source.identities = vec![keyless(true), other];
    let findings = world.judge();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(findings[0].what.starts_with("2 tables"), "{findings:#?}");
}
