//! What `init` would do: `--dry-run`, and the statements that auto is about to run.

use steep_protocol::NodeId;
use steep_protocol::message::api::InitRequest;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::SchemaMode;

use super::request;
use crate::client::Client;
use crate::commands::doctor;
use crate::failure::Failure;
use crate::render::{findings, json};
use crate::signals::Signals;
use crate::terminal::{Terminal, print, print_json, tell};

/// Shows how much would be copied, how the schemas differ, which statements would be run, and what else
/// preflight found; changes nothing. The exit code is the one `init` would stop with.
pub(super) async fn show(
    client: Client,
    wanted: &InitRequest,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<u8, Failure> {
    let found = request::look(wanted, &client, signals).await?;
    client.close().await;
    for (spec, (target, findings)) in wanted.specs().iter().zip(&found) {
        if terminal.json {
            print_json(&json::plan(target, spec.schema_mode, findings));
        } else if let InitRequest::Resume(_) = wanted {
            print(&findings::report(target, findings, terminal.out));
        } else {
            print(&findings::dry_run(target, findings, terminal.out));
        }
    }
    Ok(doctor::exit_code(
        found.iter().flat_map(|(_, findings)| findings),
    ))
}

/// Prints the statements that auto will run, or what a resume keeps and reads again.
pub(super) async fn announce(
    client: &Client,
    wanted: &InitRequest,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<(), Failure> {
    if let InitRequest::Resume(_) = wanted {
        if !terminal.json {
            for (target, found) in request::look(wanted, client, signals).await? {
                tell(findings::report(&target, &found, terminal.err).trim_end());
            }
        }
        return Ok(());
    }
    let auto = wanted
        .specs()
        .iter()
        .any(|spec| spec.schema_mode == SchemaMode::Auto);
    if !auto {
        return Ok(());
    }
    let found = about_schemas(client, wanted, signals).await?;
    for (spec, (target, findings)) in wanted.specs().iter().zip(&found) {
        if findings.is_empty() {
            continue;
        }
        if terminal.json {
            print_json(&json::plan(target, spec.schema_mode, findings));
        } else {
            tell(findings::plan(target, findings, terminal.err).trim_end());
        }
    }
    Ok(())
}

async fn about_schemas(
    client: &Client,
    wanted: &InitRequest,
    signals: &mut Signals,
) -> Result<Vec<(NodeId, Vec<Finding>)>, Failure> {
    let mut found = request::look(wanted, client, signals).await?;
    for (_, found) in &mut found {
        found.retain(findings::is_about_schema);
    }
    Ok(found)
}
