//! The new terms of a running job, for people. Pure.

use steep_protocol::NodeId;
use steep_protocol::message::adjust::Adjusted;

use super::Paint;
use crate::units;

/// `node_b: 8 workers, no limit on the rate, from now on`.
pub(crate) fn line(node: &NodeId, terms: &Adjusted, paint: Paint) -> String {
    let mut workers = match terms.parallel {
        1 => "1 worker".to_owned(),
        parallel => format!("{parallel} workers"),
    };
    if terms.parallel_workers < terms.parallel {
        let room = format!("the agents have room for {}", terms.parallel_workers);
        workers.push_str(&format!(" ({})", paint.yellow(&room)));
    }
    let rate = match terms.max_rate {
        Some(rate) => format!("at most {}", units::rate(rate.0 as f64)),
        None => "no limit on the rate".to_owned(),
    };
    let when = match terms.from_phase {
        Some(phase) => format!("from the phase {phase} on"),
        None => "from now on".to_owned(),
    };
    format!("{}: {workers}, {rate}, {when}", paint.bold(node.as_str()))
}

#[cfg(test)]
mod tests {
    use steep_protocol::{ByteCount, JobId, Phase};

    use super::super::samples::id;
    use super::*;

    #[test]
    fn terms_are_said_with_what_holds_them_up() {
        let mut terms = Adjusted {
            job_id: JobId(1),
            parallel: 8,
            parallel_workers: 8,
            max_rate: None,
            from_phase: None,
        };
        let line = |terms: &Adjusted| line(&id("node_b"), terms, Paint::Plain);
        assert_eq!(
            line(&terms),
            "node_b: 8 workers, no limit on the rate, from now on"
        );
        terms.parallel_workers = 4;
        terms.max_rate = Some(ByteCount(1_000_000));
        terms.from_phase = Some(Phase::Copy);
        assert_eq!(
            line(&terms),
            "node_b: 8 workers (the agents have room for 4), at most 1.0 MB/s, from the phase copy on"
        );
    }
}
