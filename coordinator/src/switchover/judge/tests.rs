//! Claims about what speaks against a switchover.

use steep_protocol::message::switchover::{RowsCheck, SwitchoverFacts};

use super::*;
use crate::testing::node;

fn spec() -> SwitchoverSpec {
    SwitchoverSpec {
        from: node("a"),
        to: node("b"),
        way_back: WayBack::None,
        rows: RowsCheck::Skipped,
        terminate_after_seconds: 30,
        max_stop_seconds: 60,
        max_lag: ByteCount(1_000),
        lacking: Lacking::Refused,
    }
}

fn able() -> SwitchoverFacts {
    SwitchoverFacts {
        database: "app".to_owned(),
        role: "agent".to_owned(),
        owner: "Owner".to_owned(),
        may_set_database: true,
        may_see_sessions: true,
        may_end_sessions: true,
        lock_room: 6_400,
        tables: 10,
        ..SwitchoverFacts::default()
    }
}

fn some(name: &str) -> Listed {
    [name.to_owned()].into_iter().collect()
}

struct Case {
    spec: SwitchoverSpec,
    known: Known,
    old: SwitchoverFacts,
    new: SwitchoverFacts,
}

impl Case {
    fn healthy() -> Self {
        Self {
            spec: spec(),
            known: Known {
                lag: Some(ByteCount(0)),
                ..Known::default()
            },
            old: able(),
            new: able(),
        }
    }

    fn judge(&self) -> Vec<Finding> {
        judge(&self.spec, &self.known, &self.old, &self.new)
    }
}

#[test]
fn a_healthy_pair_has_no_findings_and_each_trouble_has_its_own() {
    assert_eq!(Case::healthy().judge(), []);
    type Change = fn(&mut Case);
    let cases: [(&str, Severity, &str, Change); 19] = [
        ("lag", Severity::Error, "b", |c| {
            c.known.lag = Some(ByteCount(1_001));
        }),
        ("lag_unknown", Severity::Warning, "b", |c| {
            c.known.lag = None;
        }),
        ("columns_differ", Severity::Error, "b", |c| {
            c.known.columns_differ = true;
        }),
        ("other_replicas", Severity::Warning, "a", |c| {
            c.known.others = vec![node("c")];
        }),
        ("other_slots", Severity::Warning, "a", |c| {
            c.old.slots = some("theirs");
        }),
        ("standby", Severity::Error, "a", |c| c.old.standby = true),
        ("may_not_set_database", Severity::Error, "a", |c| {
            c.old.may_set_database = false;
        }),
        ("may_not_set_database", Severity::Error, "b", |c| {
            c.new.may_set_database = false;
        }),
        ("may_not_end_sessions", Severity::Error, "a", |c| {
            c.old.may_end_sessions = false;
        }),
        ("superuser_sessions", Severity::Error, "a", |c| {
            c.old.superuser_sessions = 1;
        }),
        ("prepared_transactions", Severity::Error, "a", |c| {
            c.old.prepared = some("gid");
        }),
        ("roles_that_write", Severity::Error, "a", |c| {
            c.old.writable_roles = some("app");
        }),
        ("subscribes", Severity::Error, "a", |c| {
            c.old.subscriptions = some("theirs");
        }),
        ("lock_table", Severity::Error, "a", |c| c.old.tables = 3_201),
        ("not_replicated", Severity::Error, "a", |c| {
            c.old.not_replicated = some("app.t");
        }),
        ("roles_missing", Severity::Error, "b", |c| {
            c.new.lacking_roles = some("app");
        }),
        ("sequences_missing", Severity::Error, "b", |c| {
            c.new.lacking_sequences = some("app.numbers");
        }),
        ("extensions_missing", Severity::Warning, "b", |c| {
            c.new.lacking_extensions = some("citext");
        }),
        ("sessions_end", Severity::Info, "a", |c| c.old.sessions = 2),
    ];
    for (code, severity, on, change) in cases {
        let mut case = Case::healthy();
        change(&mut case);
        let found = case.judge();
        let [finding] = &found[..] else {
            panic!("{code}: {found:?}")
        };
        assert_eq!((finding.code.as_str(), finding.severity), (code, severity));
        assert_eq!(finding.node, Some(node(on)), "{code}");
        assert_eq!(is_free(&found), severity != Severity::Error, "{code}");
    }
}

#[test]
fn missing_rights_name_the_grant_and_hostile_names_are_quoted() {
    let mut case = Case::healthy();
    case.old.role = "ag\"ent".to_owned();
    (case.old.may_see_sessions, case.old.may_end_sessions) = (false, false);
    case.old.may_set_database = false;
    let fixes: Vec<String> = case.judge().into_iter().map(|found| found.fix).collect();
    assert_eq!(
        fixes,
        [
            "GRANT \"Owner\" TO \"ag\"\"ent\"",
            "GRANT pg_read_all_stats, pg_signal_backend TO \"ag\"\"ent\"",
        ]
    );
}

#[test]
fn what_applications_lack_can_be_accepted_and_triggers_only_matter_for_a_way_back() {
    let mut case = Case::healthy();
    case.old.not_replicated = some("app.t");
    case.new.lacking_roles = some("app");
    case.old.replica_triggers = some("app.t: audit");
    case.spec.lacking = Lacking::Accepted;
    let found = case.judge();
    assert!(is_free(&found) && found.len() == 2, "{found:?}");
    case.spec.way_back = WayBack::Follow;
    let found = case.judge();
    let codes: Vec<&str> = found.iter().map(|found| found.code.as_str()).collect();
    assert_eq!(
        codes[..3],
        ["may_not_follow", "may_not_follow", "replica_triggers"]
    );
    assert_eq!(found[0].fix, "GRANT pg_create_subscription TO \"agent\"");
    assert!(!is_free(&found));
}
