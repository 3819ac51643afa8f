//! Whatever is lost, late or doubled, one node takes writes in the end.

use super::*;

/// Commands are carried out late, twice or not at all, outcomes are lost, and an old node gives writes back by itself.
#[test]
fn whatever_is_lost_exactly_one_node_takes_writes_in_the_end() {
    let (mut completed, mut undone) = (0, 0);
    for seed in 1..4_000u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let way_back = [WayBack::None, WayBack::Follow][dice.roll(2) as usize];
        let (mut one, effects) = begun(way_back, RowsCheck::Skipped);
        let mut model = Model::default();
        let mut sent = effects;
        for turn in 0..3_000i64 {
            for effect in std::mem::take(&mut sent) {
                match effect {
                    Effect::Send(id) => drop(model.waiting.insert(id, one.step)),
                    Effect::Abort(id, _) => {
                        let undone = model.waiting.remove(&id).filter(|_| dice.roll(2) == 0);
                        // A command that is cancelled may have been carried out before.
                        if let Some(step) = undone {
                            let _ = model.perform(step);
                        }
                        if dice.roll(3) > 0 {
                            let outcome = Box::new(Err(fault()));
                            let event = Event::Ended { id, outcome };
                            sent.extend(one.step(event, at(turn)));
                        }
                    }
                    Effect::Entered(_) | Effect::TriesAgain(_) | Effect::Undoing(_) => {}
                }
            }
            model.check(&one);
            if one.step.is_over() {
                break;
            }
            let calm = turn > 200;
            let more = match dice.roll(if calm { 8 } else { 12 }) {
                0..=3 => {
                    let first = model.waiting.pop_first();
                    first.map_or_else(Vec::new, |(id, step)| {
                        let outcome = match dice.roll(6) {
                            0 if !calm => Err(fault()),
                            _ => model.perform(step),
                        };
                        let outcome = match dice.roll(6) {
                            // Done, and it looks like a failure.
                            0 if !calm => Err(fault()),
                            1 if !calm => return Vec::new(),
                            _ => outcome,
                        };
                        let outcome = Box::new(outcome);
                        one.step(Event::Ended { id, outcome }, at(turn))
                    })
                }
                4 => one.step(Event::Up(node("a")), at(turn)),
                5 => one.step(Event::Up(node("b")), at(turn)),
                6 => one.step(Event::Tick, at(turn)),
                7 => match one.step {
                    Step::Detach => one.step(Event::Detached, at(turn)),
                    Step::Follow => one.step(Event::Followed(Ok(())), at(turn)),
                    _ => Vec::new(),
                },
                8 if dice.roll(8) == 0 => one.step(Event::Undo(fault()), at(turn)),
                9 if model.old == Old::Closed && dice.roll(8) == 0 => {
                    model.old = Old::Open;
                    Vec::new()
                }
                // A coordinator that is restarted reads what it has stored.
                10 => {
                    let stored = serde_json::to_string(&one).unwrap();
                    one = serde_json::from_str(&stored).unwrap();
                    Vec::new()
                }
                _ => Vec::new(),
            };
            sent.extend(more);
            model.check(&one);
        }
        match one.step {
            Step::Completed => completed += 1,
            Step::Undone => undone += 1,
            other => panic!("seed {seed} never ends: {other:?}, {one:?}"),
        }
    }
    assert!(completed > 100 && undone > 100, "{completed}, {undone}");
}
