//! What `init` would do about schemas that differ: `--dry-run`, and what auto is about to run.

use steep_protocol::NodeId;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::SchemaMode;

use super::request::InitRequest;
use crate::client::Client;
use crate::commands::doctor;
use crate::failure::Failure;
use crate::render::{findings, json};
use crate::signals::Signals;
use crate::terminal::{Terminal, print, print_json, tell};

/// How findings about schemas begin.
const ABOUT_SCHEMAS: &str = "schema_";

/// Shows differences and statements and changes nothing. The exit code is what `init` would have for
/// them.
pub(super) async fn show(
    client: Client,
    wanted: &InitRequest,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<u8, Failure> {
    let found = about_schemas(&client, wanted, signals).await?;
    client.close().await;
    for (spec, (target, findings)) in wanted.specs().iter().zip(&found) {
        if terminal.json {
            print_json(&json::plan(target, spec.schema_mode, findings));
        } else {
            print(&findings::plan(target, findings, terminal.out));
        }
    }
    Ok(doctor::exit_code(
        found.iter().flat_map(|(_, findings)| findings),
    ))
}

/// Says what auto will run, before the job begins.
pub(super) async fn announce(
    client: &Client,
    wanted: &InitRequest,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<(), Failure> {
    if let InitRequest::Resumed(_) = wanted {
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
    let mut found = wanted.look(client, signals).await?;
    for (_, findings) in &mut found {
        findings.retain(|finding| finding.code.starts_with(ABOUT_SCHEMAS));
    }
    Ok(found)
}
