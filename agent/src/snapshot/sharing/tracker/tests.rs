use std::collections::{BTreeSet, HashSet, VecDeque};

use proptest::prelude::*;
use steep_protocol::{ByteCount, RowCount, Sum};

use super::*;

fn node(n: usize) -> NodeId {
    NodeId::parse(&format!("t{n}")).unwrap()
}

fn part(no: u32) -> PartAs {
    PartAs {
        part: PartNo(no),
        format: CopyFormat::Binary,
    }
}

fn sum(version: u8) -> PartSum {
    PartSum {
        heads: Sum([version; 32]),
        rows: RowCount(7),
        bytes: ByteCount(77),
    }
}

/// The source sends a part to a target, which keeps it.
fn give(tracker: &mut Tracker, target: &NodeId, part: PartAs, version: u8) {
    let now = Instant::now();
    let read = tracker.read_anyway(&ask(target, &[part], &[]));
    let Some(Next::Read(_, serial)) = read else {
        panic!("{read:?}");
    };
    tracker.ended(target, (part, serial), Ended::Sent(sum(version)), now);
    tracker.received(target, part, true);
}

fn ask<'a>(target: &'a NodeId, wanted: &'a [PartAs], peers: &'a [NodeId]) -> Ask<'a> {
    Ask {
        target,
        wanted,
        peers,
        keeping: Keeping::Intended,
    }
}

/// What a worker does.
#[derive(Debug, Clone)]
enum Work {
    Idle,
    Reads(PartAs, u64),
    Fetches(PartAs, usize, PartSum),
    /// All these are on their way to others; the rest of the queue has been asked for.
    Waits(Vec<PartAs>),
}

#[derive(Debug)]
struct Target {
    alive: bool,
    queue: VecDeque<PartAs>,
    workers: Vec<Work>,
    has: BTreeSet<PartAs>,
    kept: HashMap<PartAs, PartSum>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum World {
    Sound,
    Failing,
}

/// Targets with workers, and chance.
struct Play {
    tracker: Tracker,
    targets: Vec<Target>,
    /// Whom the tracker may name, as it was told.
    known: HashSet<(usize, PartAs)>,
    parts: u32,
    reads: usize,
    anyway: usize,
    now: Instant,
    chance: u64,
    world: World,
}

impl Play {
    fn new((targets, workers, parts): (usize, usize, u32), chance: u64, world: World) -> Self {
        let mut play = Self {
            tracker: Tracker::new(workers),
            targets: Vec::new(),
            known: HashSet::new(),
            parts,
            reads: 0,
            anyway: 0,
            now: Instant::now(),
            chance,
            world,
        };
        for _ in 0..targets {
            play.join(workers);
        }
        play
    }

    fn join(&mut self, workers: usize) {
        self.targets.push(Target {
            alive: true,
            queue: (0..self.parts).map(part).collect(),
            workers: vec![Work::Idle; workers],
            has: BTreeSet::new(),
            kept: HashMap::new(),
        });
    }

    /// A number below `below`.
    fn pick(&mut self, below: usize) -> usize {
        self.chance = self
            .chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) as usize % below
    }

    fn fails(&mut self, one_in: usize) -> bool {
        self.world == World::Failing && self.pick(one_in) == 0
    }

    fn peers(&self, of: usize) -> Vec<NodeId> {
        let others = (0..self.targets.len()).filter(|at| *at != of && self.targets[*at].alive);
        others.map(node).collect()
    }

    fn turn(&mut self) {
        self.now += Duration::from_millis(100);
        let at = self.pick(self.targets.len());
        if !self.targets[at].alive {
            return;
        }
        if self.fails(200) && self.targets.iter().filter(|t| t.alive).count() > 1 {
            return self.leave(at);
        }
        if self.fails(100) {
            // Evicted, which the tracker is not told.
            self.targets[at].kept.clear();
        }
        let worker = self.pick(self.targets[at].workers.len());
        match self.targets[at].workers[worker].clone() {
            Work::Idle => {
                let most = 1 + self.pick(4);
                let queue = &mut self.targets[at].queue;
                let wanted: Vec<PartAs> = queue.drain(..most.min(queue.len())).collect();
                if !wanted.is_empty() {
                    self.ask(at, worker, wanted);
                }
            }
            Work::Waits(wanted) => self.ask(at, worker, wanted),
            Work::Reads(part, serial) => {
                // Packed differently now and then.
                let sent = sum(u8::from(self.fails(3)));
                let how = match self.fails(10) {
                    true => Ended::Broken,
                    false => Ended::Sent(sent),
                };
                self.tracker.ended(&node(at), (part, serial), how, self.now);
                match how {
                    Ended::Sent(_) => self.loaded(at, worker, part, sent),
                    Ended::Broken => self.ask(at, worker, vec![part]),
                }
            }
            Work::Fetches(part, holder, sum) => {
                if let Some(kept) = self.targets[holder].kept.get(&part) {
                    assert_eq!(*kept, sum, "an honest target is refused");
                    self.loaded(at, worker, part, sum);
                } else {
                    self.tracker.failed(&node(holder), part);
                    self.known.remove(&(holder, part));
                    self.ask(at, worker, vec![part]);
                }
            }
        }
    }

    fn ask(&mut self, at: usize, worker: usize, wanted: Vec<PartAs>) {
        let (target, peers) = (node(at), self.peers(at));
        let ask = ask(&target, &wanted, &peers);
        let mut next = self.tracker.next(&ask, self.now);
        let impatient = next == Next::Wait && self.fails(20);
        if impatient {
            self.anyway += 1;
            next = self.tracker.read_anyway(&ask).unwrap();
        }
        let chosen = match next {
            Next::Wait => {
                self.targets[at].workers[worker] = Work::Waits(wanted);
                return;
            }
            Next::Read(part, serial) => {
                self.reads += 1;
                self.targets[at].workers[worker] = Work::Reads(part, serial);
                part
            }
            Next::Ask(part, peer, sum) => {
                let holder = (0..self.targets.len()).find(|n| node(*n) == peer).unwrap();
                assert!(holder != at && peers.contains(&peer));
                assert!(
                    self.known.contains(&(holder, part)),
                    "{holder} never had it"
                );
                self.targets[at].workers[worker] = Work::Fetches(part, holder, sum);
                part
            }
        };
        assert!(wanted.contains(&chosen));
        let rest = wanted.into_iter().filter(|part| *part != chosen).rev();
        for part in rest {
            self.targets[at].queue.push_front(part);
        }
    }

    fn loaded(&mut self, at: usize, worker: usize, part: PartAs, sum: PartSum) {
        assert!(self.targets[at].has.insert(part), "loaded twice");
        self.targets[at].workers[worker] = Work::Idle;
        if self.fails(20) {
            // What it says of the part is lost.
            return;
        }
        let kept = !self.fails(10);
        if kept {
            self.targets[at].kept.insert(part, sum);
            self.known.insert((at, part));
        }
        self.tracker.received(&node(at), part, kept);
    }

    fn leave(&mut self, at: usize) {
        let workers = std::mem::take(&mut self.targets[at].workers);
        for work in workers {
            if let Work::Reads(part, serial) = work {
                let of = (part, serial);
                self.tracker.ended(&node(at), of, Ended::Broken, self.now);
            }
        }
        self.tracker.left(&node(at));
        self.known.retain(|(of, _)| *of != at);
        self.targets[at].alive = false;
        self.targets[at].kept.clear();
    }

    fn is_whole(&self, target: &Target) -> bool {
        !target.alive || target.has.len() == self.parts as usize
    }

    fn play(&mut self) {
        for turn in 0.. {
            if self.targets.iter().all(|target| self.is_whole(target)) {
                break;
            }
            assert!(turn < 200_000, "somebody starves");
            self.turn();
            if self.fails(300) && self.targets.len() < 8 {
                self.join(2);
            }
        }
        assert_eq!(self.tracker.reads, 0);
    }
}

proptest! {
    #[test]
    fn whoever_leaves_or_fails_every_target_that_stays_ends_whole(
        targets in 1..6usize, workers in 1..5usize, parts in 1..40u32, chance: u64,
    ) {
        Play::new((targets, workers, parts), chance, World::Failing).play();
    }

    #[test]
    fn each_part_is_read_once_when_nobody_fails(
        targets in 1..8usize, workers in 1..5usize, parts in 1..60u32, chance: u64,
    ) {
        let mut play = Play::new((targets, workers, parts), chance, World::Sound);
        play.play();
        prop_assert_eq!((play.reads, play.anyway), (parts as usize, 0));
    }
}

#[test]
fn a_busy_source_sends_targets_to_one_another_and_an_idle_one_reads_on() {
    let now = Instant::now();
    let mut tracker = Tracker::new(1);
    let (b, c) = (node(1), node(2));
    let (wanted, peers) = ([part(0), part(1), part(2)], [b.clone(), c.clone()]);
    let Next::Read(first, serial) = tracker.next(&ask(&b, &wanted, &peers), now) else {
        panic!("nobody has any");
    };
    tracker.ended(&b, (first, serial), Ended::Sent(sum(1)), now);
    tracker.received(&b, first, true);
    let idle = tracker.next(&ask(&c, &wanted, &peers), now);
    assert_eq!(idle, Next::Read(part(1), 2));
    let busy = tracker.next(&ask(&c, &[part(0), part(2)], &peers), now);
    assert_eq!(busy, Next::Ask(part(0), b, sum(1)));
}

#[test]
fn nobody_is_asked_for_a_part_whose_sending_was_not_seen_to_its_end() {
    let now = Instant::now();
    let mut tracker = Tracker::new(1);
    let (b, c) = (node(1), node(2));
    let (wanted, peers) = ([part(0)], [b.clone(), c.clone()]);
    let Next::Read(read, serial) = tracker.next(&ask(&b, &wanted, &peers), now) else {
        panic!("nobody has it");
    };
    tracker.ended(&b, (read, serial), Ended::Broken, now);
    tracker.received(&b, read, true);
    let next = tracker.next(&ask(&c, &wanted, &peers), now);
    assert!(matches!(next, Next::Read(..)), "{next:?}");
}

#[test]
fn only_targets_that_have_what_is_compared_are_asked_and_none_twice_in_vain() {
    let now = Instant::now();
    let mut tracker = Tracker::new(1);
    let [b, c, d] = [1, 2, 3].map(node);
    give(&mut tracker, &b, part(0), 1);
    give(&mut tracker, &c, part(0), 2);
    let (wanted, peers) = ([part(0)], [b.clone(), c.clone()]);
    for _ in 0..3 {
        let next = tracker.next(&ask(&d, &wanted, &peers), now);
        assert_eq!(next, Next::Ask(part(0), b.clone(), sum(1)));
    }
    tracker.failed(&b, part(0));
    tracker.received(&b, part(0), true);
    let next = tracker.next(&ask(&d, &wanted, &peers), now);
    assert!(matches!(next, Next::Read(..)), "{next:?}");
    // What it fetches from elsewhere is compared, and can be passed on.
    give(&mut tracker, &d, part(0), 3);
    let next = tracker.next(&ask(&b, &wanted, std::slice::from_ref(&d)), now);
    assert_eq!(next, Next::Ask(part(0), d, sum(3)));
    tracker.received(&b, part(0), true);
    let next = tracker.next(&ask(&c, &wanted, &peers), now);
    assert_eq!(next, Next::Ask(part(0), b, sum(3)));
}

#[test]
fn the_holder_that_serves_fewest_is_asked() {
    let now = Instant::now();
    let mut tracker = Tracker::new(0);
    for holder in 0..3 {
        give(&mut tracker, &node(holder), part(0), 1);
    }
    let peers: Vec<NodeId> = (0..3).map(node).collect();
    let mut asked = BTreeSet::new();
    for target in 3..6 {
        let next = tracker.next(&ask(&node(target), &[part(0)], &peers), now);
        let Next::Ask(_, peer, _) = next else {
            panic!("{next:?}");
        };
        asked.insert(peer);
    }
    assert_eq!(asked.len(), 3);
}

#[test]
fn a_target_that_says_nothing_is_not_waited_for_long() {
    let now = Instant::now();
    let mut tracker = Tracker::new(4);
    let (b, c) = (node(1), node(2));
    let peers = [b.clone(), c.clone()];
    let Next::Read(read, serial) = tracker.next(&ask(&b, &[part(0)], &peers), now) else {
        panic!("nobody has it");
    };
    assert_eq!(tracker.next(&ask(&c, &[read], &peers), now), Next::Wait);
    tracker.ended(&b, (read, serial), Ended::Sent(sum(1)), now);
    assert_eq!(tracker.next(&ask(&c, &[read], &peers), now), Next::Wait);
    let later = tracker.next(&ask(&c, &[read], &peers), now + GRACE);
    assert!(matches!(later, Next::Read(..)), "{later:?}");
}

#[test]
fn one_who_keeps_nothing_is_not_waited_for() {
    let now = Instant::now();
    let mut tracker = Tracker::new(4);
    let (b, c) = (node(1), node(2));
    let wanted = [part(0)];
    let silent = Ask {
        keeping: Keeping::No,
        ..ask(&b, &wanted, &[])
    };
    assert!(matches!(tracker.next(&silent, now), Next::Read(..)));
    let other = tracker.next(&ask(&c, &[part(0)], std::slice::from_ref(&b)), now);
    assert!(matches!(other, Next::Read(..)), "{other:?}");
}

#[test]
fn more_targets_than_seats_are_served_and_none_is_asked() {
    let now = Instant::now();
    let mut tracker = Tracker::new(4);
    for target in 0..PEERS_MAX + 2 {
        give(&mut tracker, &node(target), part(0), 1);
    }
    let last = node(PEERS_MAX + 1);
    let next = tracker.next(&ask(&node(0), &[part(0)], std::slice::from_ref(&last)), now);
    assert!(matches!(next, Next::Read(..)), "{next:?}");
    tracker.left(&node(1));
    give(&mut tracker, &last, part(0), 1);
    let next = tracker.next(&ask(&node(0), &[part(0)], std::slice::from_ref(&last)), now);
    assert_eq!(next, Next::Ask(part(0), last, sum(1)));
}

#[test]
fn the_format_that_a_target_reads_is_remembered() {
    let mut tracker = Tracker::new(4);
    let (b, c) = (node(1), node(2));
    let text = PartAs {
        part: PartNo(70),
        format: CopyFormat::Text,
    };
    tracker.next(&ask(&b, &[text], &[]), Instant::now());
    tracker.next(&ask(&c, &[part(70)], &[]), Instant::now());
    let format = |of| tracker.format(of, PartNo(70));
    assert_eq!(format(&b), Some(CopyFormat::Text));
    assert_eq!(format(&c), Some(CopyFormat::Binary));
    assert_eq!(format(&node(3)), None);
}
