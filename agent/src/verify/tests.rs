//! Whole comparisons of two servers in memory, the source written to at every question and the target behind
//! it. Everything comes from a seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use steep_protocol::limits::VERIFY_ROWS_MAX;
use steep_protocol::message::agent::PeerAddress;
use steep_protocol::message::repair::{DatabaseId, RowChange};
use steep_protocol::message::verify::{
    BucketSum, Comparing, HeapRange, KeyedRow, ListedTables, ModifiedBy, OpenedTable, Relation,
    RowDigest, RowKey, RowValues, Sieve, SlotPosition, SubscriptionFacts, TableReport, TableSize,
    VerifyAsk, VerifyColumn, VerifyReply, VerifyReport, VerifyTables,
};
use steep_protocol::{ByteCount, Fault, Identifier, Lsn, NodeId, TableName};

use super::compare::compare;
use super::{Ask, Dial};
use crate::mutex::lock;

/// Pages of either heap: some statements of several lanes.
const PAGES: u32 = 2_500;

/// Rows that the load writes to; the others are quiet.
const WRITTEN: u64 = 200;

/// A row: where it is, and its content.
#[derive(Debug, Clone, Copy)]
struct Row {
    page: u32,
    digest: u128,
}

/// A change of the source: the row's new content.
type Change = (u64, Option<u128>);

#[derive(Debug)]
struct World {
    random: StdRng,
    source: BTreeMap<u64, Row>,
    target: BTreeMap<u64, Row>,
    /// What the target has not applied.
    behind: VecDeque<Change>,
    written: u64,
    /// Whether the table has a key.
    keyed: bool,
    /// Whether the source is written to.
    load: bool,
}

impl World {
    fn new(seed: u64, keyed: bool) -> Self {
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            source: BTreeMap::new(),
            target: BTreeMap::new(),
            behind: VecDeque::new(),
            written: 0,
            keyed,
            load: true,
        };
        for key in 0..1_500 {
            let digest = world.random.random();
            for target in [false, true] {
                world.put(target, key, Some(digest));
            }
        }
        world
    }

    /// Writes a row to a random page, as an update does.
    fn put(&mut self, target: bool, key: u64, digest: Option<u128>) {
        let page = self.random.random_range(0..PAGES + 3);
        let rows = if target {
            &mut self.target
        } else {
            &mut self.source
        };
        if let Some(digest) = digest {
            rows.insert(key, Row { page, digest });
        } else {
            rows.remove(&key);
        }
    }

    /// Some writes to the source, row 0 every time, and some of them applied.
    fn go_on(&mut self) {
        if self.load {
            for at in 0..self.random.random_range(0..20) {
                let key = if at == 0 {
                    0
                } else {
                    self.random.random_range(0..WRITTEN)
                };
                let digest =
                    (at == 0 || self.random.random_bool(0.8)).then(|| self.random.random());
                // A table without a key is only added to.
                let (key, digest) = match self.keyed {
                    true => (key, digest),
                    false => (1_000_000 + self.written, Some(self.random.random())),
                };
                self.put(false, key, digest);
                self.behind.push_back((key, digest));
                self.written += 1;
            }
        }
        for _ in 0..self.random.random_range(0..25) {
            if let Some((key, digest)) = self.behind.pop_front() {
                self.put(true, key, digest);
            }
        }
    }

    /// The hash by which rows are put into buckets.
    fn hash(&self, key: u64, row: Row) -> u64 {
        let from = if self.keyed { key } else { row.digest as u64 };
        from.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    fn rows(&self, target: bool, range: HeapRange, sieve: &Sieve) -> Vec<(u64, u64, Row)> {
        let rows = if target { &self.target } else { &self.source };
        let (from, to) = (
            range.pages.from.unwrap_or(0),
            range.pages.to.unwrap_or(u32::MAX),
        );
        let found = rows
            .iter()
            .filter(|(_, row)| (from..to).contains(&row.page));
        let hashed = found.map(|(key, row)| (self.hash(*key, *row), *key, *row));
        let passes = |hash: u64| {
            let mut shift = 0;
            sieve.0.iter().all(|level| {
                let bucket = (hash >> shift) & ((1 << level.bits) - 1);
                shift += level.bits;
                level.wanted[bucket as usize / 8] >> (bucket % 8) & 1 == 1
            })
        };
        hashed.filter(|(hash, ..)| passes(*hash)).collect()
    }

    fn answer(&mut self, target: bool, ask: VerifyAsk) -> VerifyReply {
        self.go_on();
        let name = |text: &str| Identifier::parse(text).unwrap();
        match ask {
            VerifyAsk::List(ListedTables::Filtered(_)) => VerifyReply::Tables(Vec::new()),
            VerifyAsk::List(_) => {
                let (name, bytes) = (table(), ByteCount(u64::from(PAGES) * 8192));
                VerifyReply::Tables(vec![TableSize { name, bytes }])
            }
            VerifyAsk::Open(_) => VerifyReply::Opened(Some(Box::new(OpenedTable {
                columns: vec![VerifyColumn {
                    name: name("id"),
                    generated: false,
                    nullable: false,
                }],
                keys: if self.keyed {
                    vec![vec![name("id")]]
                } else {
                    Vec::new()
                },
                uniques: Vec::new(),
                pages: vec![PAGES],
                rows_estimate: 1_500,
                hashing: String::new(),
            }))),
            VerifyAsk::Read(..) => VerifyReply::Done,
            VerifyAsk::Sums { range, sieve, bits } => {
                let used: u32 = sieve.0.iter().map(|level| u32::from(level.bits)).sum();
                let sums = self
                    .rows(target, range, &sieve)
                    .into_iter()
                    .map(|(hash, _, row)| {
                        let halves = [(row.digest >> 64) as u64, row.digest as u64];
                        BucketSum {
                            bucket: u32::try_from((hash >> used) & ((1 << bits) - 1)).unwrap(),
                            rows: 1,
                            sums: halves.map(|half| i128::from(half as i64)),
                        }
                    });
                VerifyReply::Sums(sums.collect())
            }
            VerifyAsk::Rows { range, sieve } => {
                let rows = self.rows(target, range, &sieve);
                // Fewer than a real server sends, so that ranges are divided.
                if rows.len() > VERIFY_ROWS_MAX / 40 {
                    return VerifyReply::TooMuch;
                }
                let keyed = |(_, key, row): (u64, u64, Row)| KeyedRow {
                    key: RowKey(vec![key.to_string()]),
                    digest: RowDigest(row.digest),
                };
                VerifyReply::Rows(rows.into_iter().map(keyed).collect())
            }
            VerifyAsk::LookUp(keys) => {
                let rows = if target { &self.target } else { &self.source };
                let found = keys.iter().map(|key| {
                    let row = rows.get(&key.0[0].parse::<u64>().unwrap());
                    row.map(|row| RowDigest(row.digest))
                });
                VerifyReply::Found(found.collect())
            }
            VerifyAsk::Columns { keys, .. } => VerifyReply::Columns(vec![None; keys.len()]),
            VerifyAsk::Identity => VerifyReply::Identity(DatabaseId {
                system: 7,
                database: u32::from(target),
            }),
            VerifyAsk::References(_) => VerifyReply::References(Vec::new()),
            VerifyAsk::Versions(_)
            | VerifyAsk::Fetch { .. }
            | VerifyAsk::Modified { .. }
            | VerifyAsk::Values { .. }
            | VerifyAsk::Holders { .. } => unreachable!(),
            VerifyAsk::TakeFence => VerifyReply::Fence(Lsn(self.written)),
            VerifyAsk::Slots(names) => {
                let confirmed = Lsn(self.written - self.behind.len() as u64);
                let slot = |name| SlotPosition {
                    name,
                    confirmed,
                    active: true,
                };
                VerifyReply::Slots(names.into_iter().map(slot).collect())
            }
            VerifyAsk::Subscriptions => VerifyReply::Subscriptions(vec![SubscriptionFacts {
                name: name("s"),
                slot: name("s"),
                publications: vec![name("p")],
            }]),
        }
    }
}

fn table() -> TableName {
    TableName::new("app", "t").unwrap()
}

/// One side of a world.
#[derive(Debug, Clone)]
struct Fake(Arc<Mutex<World>>, bool);

impl Dial for Fake {
    type Side = Self;
    async fn dial(&self) -> Result<Self, Fault> {
        Ok(self.clone())
    }
}

impl Ask for Fake {
    async fn ask(&mut self, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        // Others come in between.
        tokio::task::yield_now().await;
        Ok(lock(&self.0).answer(self.1, ask))
    }
}

async fn compared(world: World) -> TableReport {
    let report = reported(world, Comparing::Equality).await;
    report.tables.into_iter().next().unwrap()
}

async fn reported(world: World, comparing: Comparing) -> VerifyReport {
    let world = Arc::new(Mutex::new(world));
    let node = |name| NodeId::parse(name).unwrap();
    let request = VerifyTables {
        comparing,
        source: PeerAddress {
            node: node("a"),
            address: String::new(),
        },
        tables: Vec::new(),
        values: RowValues::Hidden,
        parallel: 3,
        max_rate: None,
        modified: ModifiedBy::NotAsked,
    };
    let sides = (Fake(Arc::clone(&world), false), Fake(world, true));
    let report = compare(sides, &node("b"), (request, Vec::new()), |_| {})
        .await
        .unwrap();
    assert_eq!(report.relation, Relation::Replicates);
    report
}

#[tokio::test(start_paused = true)]
async fn nothing_differs_between_a_source_under_load_and_its_replica() {
    for seed in 0..4 {
        for keyed in [true, false] {
            let report = compared(World::new(seed, keyed)).await;
            assert!(report.is_equal(), "seed {seed}, keyed {keyed}: {report:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_what_was_planted_is_found_under_load() {
    for seed in 0..4 {
        for keyed in [true, false] {
            let mut world = World::new(seed, keyed);
            // Most rows of some seeds, so that sieves and groups are full.
            let count = if seed == 0 { 300 } else { 7 };
            for at in 0..count {
                world.put(true, 400 + at, None);
                world.put(true, 10_000 + at, Some(u128::from(at)));
                world.put(true, 900 + at, Some(u128::from(at) << 64));
            }
            let report = compared(world).await;
            let found = [report.missing, report.extra, report.different];
            let expected = match keyed {
                true => [count, count, count],
                // The same content may be planted twice.
                false => [2 * count, 2 * count, 0],
            };
            assert_eq!(found, expected, "seed {seed}, keyed {keyed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_has_exactly_what_was_planted_with_the_digests_of_both_sides() {
    for seed in 0..4 {
        let mut world = World::new(seed, true);
        let mut planted = BTreeMap::new();
        for at in 0..40_u64 {
            let digest = |row: &Row| RowDigest(row.digest);
            let (missing, extra, other) = (400 + at, 10_000 + at, 900 + at);
            let source = digest(&world.source[&missing]);
            planted.insert(missing, RowChange::Insert { source });
            world.put(true, missing, None);
            let target = RowDigest(u128::from(at));
            planted.insert(extra, RowChange::Delete { target });
            world.put(true, extra, Some(target.0));
            let source = digest(&world.source[&other]);
            planted.insert(other, RowChange::Replace { source, target });
            world.put(true, other, Some(target.0));
        }
        let report = reported(world, Comparing::Repair).await;
        let plan = report.plan.unwrap();
        assert_eq!((plan.source.database, plan.target.database), (0, 1));
        let rows = plan.tables.iter().flat_map(|table| &table.rows);
        let rows = rows.map(|row| (row.key.0[0].parse::<u64>().unwrap(), row.change));
        assert_eq!(rows.collect::<BTreeMap<_, _>>(), planted, "seed {seed}");
    }
}
