//! Whatever happens, in whatever order: no job gets stuck, and nothing is left behind.

use proptest::prelude::*;
use steep_protocol::message::adjust::{Adjustment, MaxRate};

use super::*;

/// A random event.
#[derive(Debug, Clone)]
enum Chance {
    End { side: Side, at: usize, fault: bool },
    Kill(Side),
    Down(Side),
    Up(Side),
    Tick(i64),
    Cancel(CancelledData),
    Resume,
    Adjust(Adjustment),
    Endanger,
    LoseSnapshot,
    Silent(Side),
    Answers(Side),
    Stumble { side: Side, at: usize },
}

fn adjustment() -> impl Strategy<Value = Adjustment> {
    let rate = prop_oneof![
        Just(MaxRate::Unlimited),
        Just(MaxRate::Limited(ByteCount(1)))
    ];
    let parallel = proptest::option::of(1u8..=16);
    (parallel, proptest::option::of(rate))
        .prop_map(|(parallel, max_rate)| Adjustment { parallel, max_rate })
}

fn chance() -> impl Strategy<Value = Chance> {
    let side = || prop_oneof![Just(Side::Source), Just(Side::Target)];
    let data = prop_oneof![Just(CancelledData::Remove), Just(CancelledData::Keep)];
    prop_oneof![
        20 => (side(), 0usize..3, proptest::bool::weighted(0.05))
            .prop_map(|(side, at, fault)| Chance::End { side, at, fault }),
        1 => side().prop_map(Chance::Kill),
        2 => side().prop_map(Chance::Down),
        4 => side().prop_map(Chance::Up),
        4 => (0i64..12).prop_map(Chance::Tick),
        1 => data.prop_map(Chance::Cancel),
        1 => Just(Chance::Resume),
        1 => adjustment().prop_map(Chance::Adjust),
        1 => Just(Chance::Endanger),
        1 => Just(Chance::LoseSnapshot),
        1 => side().prop_map(Chance::Silent),
        2 => side().prop_map(Chance::Answers),
        3 => (side(), 0usize..3).prop_map(|(side, at)| Chance::Stumble { side, at }),
    ]
}

/// What is complete in mid-copy.
fn half() -> impl Strategy<Value = Complete> {
    let one = Complete {
        tables: 1,
        sum: PART,
    };
    prop_oneof![Just(Complete::default()), Just(one)]
}

impl World {
    fn suffer(&mut self, chance: Chance) {
        match chance {
            Chance::End { side, at, fault } => self.end_one(side, at, fault),
            Chance::Stumble { side, at } => self.stumble(side, at),
            Chance::Kill(side) => self.kill(side),
            Chance::Down(side) if self.agent(side).online => self.down(side),
            Chance::Up(side) if !self.agent(side).online => self.up(side),
            Chance::Down(_) | Chance::Up(_) => {}
            Chance::Tick(seconds) => self.tick(seconds),
            Chance::Endanger => self.endanger(),
            Chance::LoseSnapshot => self.lose_snapshot(),
            Chance::Silent(side) => self.server(side, Err("refused".to_owned())),
            Chance::Answers(side) => self.server(side, Ok(())),
            Chance::Adjust(change) => _ = self.apply(JobEvent::Adjust(change)),
            Chance::Resume => _ = self.apply(JobEvent::Resume { terms: TERMS }),
            Chance::Cancel(data) if !self.is_closed() => {
                self.apply(JobEvent::Cancel { data }).unwrap();
            }
            Chance::Cancel(_) => {}
        }
    }

    /// All faults end.
    fn heal(&mut self) {
        for side in Side::BOTH {
            if !self.agent(side).online {
                self.up(side);
            }
            self.server(side, Ok(()));
        }
    }

    fn check_end(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.is_closed(), "stuck: {:?}", self.job);
        let settled = [
            NodeState::Uninitialized,
            NodeState::Failed,
            NodeState::Synchronized,
        ];
        prop_assert!(settled.contains(&self.node));
        prop_assert_eq!(
            self.node == NodeState::Synchronized,
            self.finishes.contains(&Finish::Synchronized)
        );
        if self.finishes.contains(&Finish::Loaded) {
            prop_assert_eq!(self.node, NodeState::Uninitialized);
        } else if self.node != NodeState::Synchronized {
            for side in Side::BOTH {
                prop_assert!(!self.job.owes(side), "{:?} keeps something", side);
            }
        }
        Ok(())
    }
}

const METHODS: [Method; 4] = [
    Method::Native,
    Method::Snapshot,
    Method::Backup,
    Method::Load,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_history_gets_stuck_once_it_is_cancelled(
        method in 0usize..METHODS.len(),
        half in half(),
        chances in proptest::collection::vec(chance(), 0..120),
    ) {
        let mut world = World::new(METHODS[method]);
        world.half = half;
        for chance in chances {
            world.suffer(chance);
        }
        if !world.is_closed() {
            world.cancel();
        }
        world.heal();
        for _ in 0..10 {
            world.run_on();
            world.tick(15);
        }
        world.check_end()?;
    }

    #[test]
    fn once_faults_stop_every_job_comes_to_an_end_without_an_operator(
        method in 0usize..METHODS.len(),
        half in half(),
        chances in proptest::collection::vec(chance(), 0..120),
    ) {
        let mut world = World::new(METHODS[method]);
        world.half = half;
        for chance in chances {
            world.suffer(chance);
        }
        world.heal();
        for _ in 0..10 {
            world.run_on();
            world.tick(15);
        }
        if let Stage::Kept(kept) = &world.job.stage {
            prop_assert_eq!(world.node, NodeState::Failed);
            prop_assert!(kept.until > world.now, "kept for ever");
            // Once the cause is fixed, the job can be resumed.
            let mut resumed = world.clone();
            resumed.apply(JobEvent::Resume { terms: TERMS }).unwrap();
            resumed.live_on();
            let success = success(resumed.job.spec.method);
            prop_assert!(resumed.finishes.contains(&success), "{:?}", resumed.job);
            // Otherwise it is cleaned up when its time is over.
            world.tick(25 * 3600);
            world.live_on();
        }
        world.check_end()?;
    }
}
