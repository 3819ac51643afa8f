//! From buckets to rows, where the table has a key: rows of each side are looked up on the other.

use std::time::Instant;

use futures_util::future::try_join_all;
use steep_protocol::Fault;
use steep_protocol::message::repair::RowChange;
use steep_protocol::message::verify::{Comparing, DifferenceKind, RowKey, Sieve};

use super::Dial;
use super::pool::Subject;
use super::scan::{Stretch, Walk, lanes};
use super::settle::{Settled, Verdict};
use super::table::{Comparison, Pages, Tally};

/// Rows that look different are looked at again together.
const TOGETHER: usize = 1_000;

const DIFFERENT: Verdict = Verdict::Differs(DifferenceKind::Different);

/// Whose rows are walked, which decides what they can turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walked {
    /// The source's: rows that the target lacks, or has with other columns.
    Source,
    /// The target's: rows that the source lacks.
    Target,
}

impl Walked {
    /// Whether the walk counts such a row. Each is counted by one walk only.
    fn counts(self, kind: DifferenceKind) -> bool {
        let extra = kind == DifferenceKind::Extra;
        match self {
            Self::Source => !extra,
            Self::Target => extra,
        }
    }
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// The rows that differ in the buckets of `sieve`.
    pub(super) async fn narrow_keyed(
        &self,
        of: &Subject,
        pages: &Pages,
        sieve: &Sieve,
    ) -> Result<Tally, Fault> {
        let (a, b) = (
            lanes(&pages.a, self.parallel),
            lanes(&pages.b, self.parallel),
        );
        let mut all = Tally::default();
        for (lanes, walked) in [(a, Walked::Source), (b, Walked::Target)] {
            let read = lanes
                .into_iter()
                .map(|lane| self.walk(of, lane, sieve, walked));
            for tally in try_join_all(read).await? {
                all.add(tally);
            }
        }
        Ok(all)
    }

    async fn walk(
        &self,
        of: &Subject,
        lane: Vec<Stretch>,
        sieve: &Sieve,
        walked: Walked,
    ) -> Result<Tally, Fault> {
        let mut tally = Tally::default();
        let mut doubtful = Vec::new();
        let (node, piece) = match walked {
            Walked::Source => (self.a.node(), self.a.piece()),
            Walked::Target => (self.b.node(), self.b.piece()),
        };
        let mut walk = Walk::new(lane, piece);
        while let Some(step) = walk.step() {
            self.progress.more(step.pages);
            match walked {
                Walked::Source => self.a.admit(step.pages).await,
                Walked::Target => self.b.admit(step.pages).await,
            }
            let began = Instant::now();
            let read = match walked {
                Walked::Source => self.a.rows(of, step.range, sieve).await?,
                Walked::Target => self.b.rows(of, step.range, sieve).await?,
            };
            let Some(rows) = self.stepped(node, of, &mut walk, (step, began), read)? else {
                continue;
            };
            let (keys, digests): (Vec<RowKey>, Vec<_>) =
                rows.into_iter().map(|row| (row.key, row.digest)).unzip();
            if keys.is_empty() {
                continue;
            }
            let found = match walked {
                Walked::Source => self.b.look_up(of, &keys).await?,
                Walked::Target => self.a.look_up(of, &keys).await?,
            };
            let pairs = keys.into_iter().zip(digests.into_iter().zip(found));
            doubtful.extend(pairs.filter_map(|(key, (digest, found))| {
                let doubted = match walked {
                    Walked::Source => found != Some(digest),
                    Walked::Target => found.is_none(),
                };
                doubted.then_some(key)
            }));
            if doubtful.len() >= TOGETHER {
                self.judge(of, std::mem::take(&mut doubtful), walked, &mut tally)
                    .await?;
            }
        }
        self.judge(of, doubtful, walked, &mut tally).await?;
        Ok(tally)
    }

    async fn judge(
        &self,
        of: &Subject,
        keys: Vec<RowKey>,
        walked: Walked,
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        if keys.is_empty() {
            return Ok(());
        }
        let settled = Box::pin(self.settle(of, &keys)).await?;
        match self.comparing {
            Comparing::Equality => {}
            Comparing::Overlap if walked == Walked::Target => {}
            Comparing::Overlap => {
                let both = keys.iter().zip(&settled);
                let both = both.filter(|(_, settled)| settled.verdict == DIFFERENT);
                let both: Vec<RowKey> = both.map(|(key, _)| key.clone()).collect();
                self.count_columns(of, &both, &mut tally.columns).await?;
            }
            Comparing::Repair | Comparing::Merge => {
                let counted = |settled: &Settled| matches!(settled.verdict, Verdict::Differs(kind) if walked.counts(kind));
                let rows = keys.iter().zip(&settled);
                let rows = rows.filter(|(_, settled)| counted(settled));
                let rows = rows.filter_map(|(key, settled)| {
                    let change = RowChange::between(settled.source, settled.target)?;
                    Some((key.clone(), change))
                });
                let planned = self.plan(of, rows.collect()).await?;
                tally.planned.extend(planned);
            }
        }
        for (key, settled) in keys.into_iter().zip(settled) {
            match settled.verdict {
                Verdict::Differs(kind) if walked.counts(kind) => tally.count(kind, 1, key),
                Verdict::Changing if walked == Walked::Source => tally.changing += 1,
                Verdict::Equal | Verdict::Differs(_) | Verdict::Changing => {}
            }
        }
        Ok(())
    }
}
