//! Prints the results side by side.

use std::collections::BTreeMap;

use super::measure::{Measured, Process};
use super::ways::Way;

const MEBI: f64 = 1024.0 * 1024.0;

/// Prints one line per way; below, the distance of the product from the lower bound, and its cost
/// per GB.
pub(super) fn print<'a>(
    results: &[(&Way, Vec<Measured>)],
    missing: impl Iterator<Item = &'a Way>,
    processors: usize,
) {
    let medians: Vec<(&Way, &[Measured], &Measured)> = results
        .iter()
        .filter_map(|(way, runs)| Some((*way, runs.as_slice(), median(runs)?)))
        .collect();
    let ours = medians
        .iter()
        .filter(|(way, _, _)| way.is_ours())
        .map(|(_, _, measured)| measured.times.ready)
        .fold(f64::INFINITY, f64::min);
    println!(
        "{:<32}{:>9}{:>9}{:>14}{:>8}{:>11}{:>16}  peak MiB: source, target, coordinator",
        "way", "copied s", "ready s", "from to", "ratio", "our CPU s", "postgres CPU s"
    );
    for (way, runs, measured) in &medians {
        let (first, last) = range(runs);
        let ratio = if ours.is_finite() {
            format!("{:.2}", measured.times.ready / ours)
        } else {
            "-".to_owned()
        };
        let cpu = measured.costs.ours.map_or_else(
            || "-".to_owned(),
            |ours| format!("{:.1}", ours.iter().map(|one| one.cpu).sum::<f64>()),
        );
        let peaks = measured
            .costs
            .ours
            .map_or_else(|| "-".to_owned(), |ours| peaks(&ours));
        println!(
            "{:<32}{:>9.1}{:>9.1}{:>14}{:>8}{:>11}{:>16.1}  {}",
            way.to_string(),
            measured.times.copied,
            measured.times.ready,
            format!("{first:.1} {last:.1}"),
            ratio,
            cpu,
            measured.costs.postgres,
            peaks
        );
    }
    for way in missing {
        println!("{:<32} not installed on this machine", way.to_string());
    }
    println!(
        "\nReady: keys built and replication caught up; without replication for psql, pg_dump and pgcopydb."
    );
    println!("Ratio: to the faster of ours; more than 1 is slower.");
    let work = medians
        .iter()
        .map(|(_, _, measured)| measured.costs.postgres);
    floor(work, ours, processors);
    for (way, _, measured) in medians {
        per_gigabyte(way, measured);
    }
}

/// The lower bound: no way can be ready before the CPUs have done PostgreSQL's own work, which the
/// leanest way measures.
fn floor(work: impl Iterator<Item = f64>, ours: f64, processors: usize) {
    let least = work.fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_precision_loss, reason = "machines are not that large")]
    let floor = least / processors as f64;
    if ours.is_finite() {
        println!(
            "Lower bound: PostgreSQL's least work on {processors} CPUs takes {floor:.1} s; ours takes {:.2} times that.",
            ours / floor
        );
    }
}

fn range(runs: &[Measured]) -> (f64, f64) {
    let ready = runs.iter().map(|run| run.times.ready);
    ready.fold((f64::INFINITY, 0.0), |(first, last), one| {
        (first.min(one), last.max(one))
    })
}

fn peaks(ours: &[Process; 3]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
    let mebi = ours.map(|one| format!("{:.0}", one.peak as f64 / MEBI));
    mebi.join(", ")
}

fn per_gigabyte(way: &Way, measured: &Measured) {
    let (Some(ours), Some(told)) = (measured.costs.ours, measured.times.ours) else {
        return;
    };
    let phases = told
        .phases
        .map(|(name, seconds)| format!("{name} {seconds:.1}"));
    println!("{way}: seconds by phase: {}", phases.join(", "));
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
    let gigabytes = told.bytes as f64 / 1e9;
    if gigabytes > 0.0 {
        println!(
            "{way}: {gigabytes:.2} GB of COPY data; CPU seconds per GB: source {:.2}, target {:.2}, coordinator {:.2}",
            ours[0].cpu / gigabytes,
            ours[1].cpu / gigabytes,
            ours[2].cpu / gigabytes
        );
    }
}

/// The run with the median time to ready; of two, the slower.
fn median(runs: &[Measured]) -> Option<&Measured> {
    // Sorts by milliseconds, because floats have no total order.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "hours at most"
    )]
    let by_time: BTreeMap<(u64, usize), &Measured> = runs
        .iter()
        .enumerate()
        .map(|(at, run)| (((run.times.ready * 1_000.0) as u64, at), run))
        .collect();
    by_time.into_values().nth(runs.len() / 2)
}
