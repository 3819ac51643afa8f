//! Counts what the rounds saw and prints it. Pure but for the printing.

use std::collections::BTreeMap;

use super::fault::{Fault, Phase};
use super::judge::End;
use super::rounds::Outcome;
use super::said::Said;

/// Counts over all rounds.
#[derive(Debug, Default)]
pub(super) struct Table {
    rounds: usize,
    faults: BTreeMap<(Fault, Phase), usize>,
    ends: BTreeMap<End, usize>,
    missed: usize,
    named: usize,
    went_on: usize,
    silent: usize,
    transactions: u64,
}

impl Table {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        for struck in &outcome.struck {
            *self.faults.entry(*struck).or_default() += 1;
        }
        *self.ends.entry(outcome.end).or_default() += 1;
        self.missed += outcome.missed;
        self.transactions += outcome.transactions;
        for said in &outcome.said {
            match said {
                Said::Named => self.named += 1,
                Said::WentOn => self.went_on += 1,
                Said::Silent(_) => self.silent += 1,
            }
        }
    }

    /// The table, line by line.
    pub(super) fn lines(&self) -> Vec<String> {
        let phases: Vec<Phase> = Phase::ALL.to_vec();
        let mut faults: Vec<Fault> = self.faults.keys().map(|(fault, _)| *fault).collect();
        faults.dedup();
        let width = 44;
        let head = (1..=phases.len()).map(|n| format!("{n:>4}"));
        let mut lines = vec![format!(
            "{:<width$}{} all",
            "fault",
            head.collect::<String>()
        )];
        for fault in faults {
            let counts = phases.iter().map(|phase| self.struck(fault, *phase));
            let counts: Vec<usize> = counts.collect();
            lines.push(row(&fault.to_string(), &counts, width));
        }
        let all = phases.iter().map(|phase| {
            let of = self.faults.iter().filter(|((_, p), _)| p == phase);
            of.map(|(_, count)| count).sum()
        });
        lines.push(row("all", &all.collect::<Vec<usize>>(), width));
        let names = phases.iter().zip(1..);
        let names: Vec<String> = names.map(|(phase, n)| format!("{n} {phase}")).collect();
        lines.push(format!("phases: {}", names.join(", ")));
        let ends = self.ends.iter();
        let ends: Vec<String> = ends.map(|(end, count)| format!("{count} {end}")).collect();
        lines.push(format!("{} rounds: {}", self.rounds, ends.join(", ")));
        lines.push(format!(
            "{} faults found nothing to strike; {} transactions were written meanwhile",
            self.missed, self.transactions
        ));
        lines.push(format!(
            "of {} waits of more than 15 s, {} were named, {} did not hold up the job, {} were silent",
            self.named + self.went_on + self.silent,
            self.named,
            self.went_on,
            self.silent
        ));
        lines
    }

    fn struck(&self, fault: Fault, phase: Phase) -> usize {
        self.faults.get(&(fault, phase)).copied().unwrap_or(0)
    }
}

fn row(name: &str, counts: &[usize], width: usize) -> String {
    let cells = counts.iter().map(|count| match count {
        0 => "   .".to_owned(),
        count => format!("{count:>4}"),
    });
    let all: usize = counts.iter().sum();
    format!("{name:<width$}{}{all:>4}", cells.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::fault::Process;
    use super::*;

    #[test]
    fn every_fault_is_counted_in_its_phase_and_in_the_sums() {
        let kill = Fault::Kill(Process::Coordinator);
        let mut table = Table::default();
        for phase in [Phase::Indexing, Phase::Indexing, Phase::Synchronized] {
            table.add(&Outcome {
                end: End::Synchronized,
                struck: vec![(kill, phase)],
                missed: 1,
                said: vec![Said::Named],
                transactions: 10,
            });
        }
        let text = table.lines().join("\n");
        assert!(text.contains("kill coordinator"), "{text}");
        assert!(text.contains("   .   2   .   .   .   1   3"), "{text}");
        assert!(text.contains("3 rounds: 3 synchronized"), "{text}");
        assert!(text.contains("3 faults found nothing"), "{text}");
        assert!(text.contains("30 transactions"), "{text}");
    }
}
