//! Whatever happens in whatever order, no job gets stuck and nothing is left behind.

use proptest::prelude::*;

use super::*;

/// Something random that happens.
#[derive(Debug, Clone)]
enum Chance {
    End { side: Side, at: usize, fault: bool },
    Kill(Side),
    Down(Side),
    Up(Side),
    Tick(i64),
    Cancel(CancelledData),
    Endanger,
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
        1 => Just(Chance::Endanger),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_history_gets_stuck(
        method in 0usize..3,
        chances in proptest::collection::vec(chance(), 0..120),
    ) {
        let method = [Method::Native, Method::Snapshot, Method::Backup][method];
        let mut world = World::new(method);
        for chance in chances {
            match chance {
                Chance::End { side, at, fault } => world.end_one(side, at, fault),
                Chance::Kill(side) => world.kill(side),
                Chance::Down(side) if world.agent(side).online => world.down(side),
                Chance::Up(side) if !world.agent(side).online => world.up(side),
                Chance::Down(_) | Chance::Up(_) => {}
                Chance::Tick(seconds) => world.tick(seconds),
                Chance::Endanger => world.endanger(),
                Chance::Cancel(data) if !world.is_closed() => {
                    world.apply(JobEvent::Cancel { data }).unwrap();
                }
                Chance::Cancel(_) => {}
            }
        }
        // From here on everything is well again, and an operator cancels.
        if !world.is_closed() {
            world.apply(JobEvent::Cancel { data: CancelledData::Remove }).unwrap();
        }
        for side in Side::BOTH {
            if !world.agent(side).online {
                world.up(side);
            }
        }
        for _ in 0..10 {
            world.run_on();
            world.tick(15);
        }
        prop_assert!(world.is_closed(), "stuck: {:?}", world.job);
        let settled = [NodeState::Uninitialized, NodeState::Failed, NodeState::Synchronized];
        prop_assert!(settled.contains(&world.node));
        prop_assert_eq!(
            world.node == NodeState::Synchronized,
            world.finishes.contains(&Finish::Synchronized)
        );
        if world.node != NodeState::Synchronized {
            for side in Side::BOTH {
                prop_assert!(!world.job.owes(side), "{:?} keeps something", side);
            }
        }
    }
}
