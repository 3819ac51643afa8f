//! `steep-repl doctor`: the preflight alone.

use steep_protocol::message::api::{ApiReply, InitRequest, Query};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::{Confirmation, JobSpec};
use steep_protocol::{FaultKind, NodeId};

use super::Context;
use crate::args::DoctorArgs;
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{findings, json};
use crate::terminal::{Terminal, print, print_json};

/// The code of findings about schemas that differ.
pub(super) const SCHEMA_MISMATCH: &str = "schema_mismatch";

/// Runs the preflight and prints the findings.
pub(super) async fn run(mut args: DoctorArgs, context: &Context) -> Result<u8, Failure> {
    args.choices.fill(&context.settings);
    let specs = args
        .choices
        .specs(&args.targets, &args.from, Confirmation::Needed)?;
    let client = context.client().await?;
    let found = ask(&client, &InitRequest::Copy(specs)).await?;
    client.close().await;
    Ok(told(&found, context.terminal))
}

/// Prints the findings and returns the exit code.
pub(super) fn told(found: &[(NodeId, Vec<Finding>)], terminal: Terminal) -> u8 {
    if terminal.json {
        print_json(&json::doctor(found));
    } else {
        let texts: Vec<_> = found
            .iter()
            .map(|(target, findings)| findings::report(target, findings, terminal.out))
            .collect();
        print(&texts.join("\n"));
    }
    exit_code(found.iter().flat_map(|(_, findings)| findings))
}

/// Runs the preflight. Returns findings by target.
pub(super) async fn ask(
    client: &Client,
    request: &InitRequest,
) -> Result<Vec<(NodeId, Vec<Finding>)>, Failure> {
    let replies = client.ask_all(Query::Doctor(request.clone())).await?;
    let found: Vec<_> = replies
        .into_iter()
        .filter_map(|reply| match reply {
            ApiReply::Findings { target, findings } => Some((target, findings)),
            _ => None,
        })
        .collect();
    // Silence about a target must not read as health.
    for JobSpec { target, .. } in request.specs() {
        if !found.iter().any(|(answered, _)| answered == target) {
            let message = "the coordinator did not say what preflight found";
            return Err(Failure::new(FaultKind::Failed, message).on(target));
        }
    }
    Ok(found)
}

/// 0 without errors, 3 where schemas differ, whatever else stands in the way, else 1.
pub(super) fn exit_code<'a>(findings: impl Iterator<Item = &'a Finding>) -> u8 {
    let errors = findings.filter(|finding| finding.severity == Severity::Error);
    errors.fold(failure::SUCCESS, |code, error| {
        if code == failure::SCHEMA_MISMATCH || error.code == SCHEMA_MISMATCH {
            failure::SCHEMA_MISMATCH
        } else {
            failure::ERROR
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::finding;

    #[test]
    fn the_exit_code_tells_schema_differences_from_other_errors() {
        let code = |list: &[(Severity, &str)]| {
            let findings: Vec<_> = list.iter().map(|(s, code)| finding(*s, code)).collect();
            exit_code(findings.iter())
        };
        let (mismatch, other) = (
            (Severity::Error, SCHEMA_MISMATCH),
            (Severity::Error, "wal_level"),
        );
        assert_eq!(code(&[]), 0);
        assert_eq!(
            code(&[
                (Severity::Warning, "clock"),
                (Severity::Warning, SCHEMA_MISMATCH)
            ]),
            0
        );
        assert_eq!(code(&[mismatch, mismatch]), 3);
        assert_eq!(code(&[other]), 1);
        assert_eq!(code(&[mismatch, other]), 3);
        assert_eq!(code(&[other, mismatch]), 3);
    }
}
