//! `steep-repl snapshot`: stored snapshots.

mod verify;

use std::path::Path;

use indicatif::ProgressBar;
use steep_archive::generate_key;
use steep_protocol::message::api::{ApiReply, ApiRequest, Order, Query};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::snapshot::{SnapshotState, SnapshotView};
use steep_protocol::{FaultKind, NodeId, SnapshotId};

use crate::args::{GenerateArgs, SnapshotCommand};
use crate::client::{Client, ReplyError};
use crate::commands::{Context, interrupted};
use crate::failure::{self, Failure};
use crate::redial::Redial;
use crate::render::{clean, findings, json, stored};
use crate::signals::Signals;
use crate::terminal::{
    self, Terminal, print, print_folded, print_json, print_line, tell, try_print,
};

pub(crate) async fn run(command: SnapshotCommand, context: &Context) -> Result<u8, Failure> {
    match command {
        SnapshotCommand::Generate(args) => generate(&args, context).await,
        SnapshotCommand::Apply(args) => super::init::apply::run(*args, context).await,
        SnapshotCommand::List { source } => list(source, context).await,
        SnapshotCommand::Show { id } => show(id, context).await,
        SnapshotCommand::Verify {
            stored,
            snapshot_key,
        } => verify::run(&stored, snapshot_key, context).await,
        SnapshotCommand::Keygen { output } => keygen(&output, context),
        SnapshotCommand::Delete { id, force, yes } => delete(id, (force, yes), context).await,
    }
}

/// Makes a key; needs no coordinator.
fn keygen(output: &Path, context: &Context) -> Result<u8, Failure> {
    let made = generate_key(output);
    let recipient = made.map_err(|error| Failure::new(FaultKind::Failed, error.to_string()))?;
    let text = match context.terminal.json {
        true => json::key(output, &recipient).to_string(),
        false => format!("recipient {recipient}"),
    };
    try_print(&format!("{text}\n")).map_err(|error| {
        let text = format!(
            "the key was made, its file {} exists, and its recipient {recipient} could not be written to stdout: {error}",
            output.display()
        );
        Failure::new(FaultKind::Failed, text)
            .hint("keep the file, or remove it and make another key; the recipient is also in a comment in the file")
    })?;
    if !context.terminal.json {
        tell(&format!(
            "The secret key is in {0}. Keep a copy of it in a safe place: without it, nobody reads what is encrypted to \
             this recipient. An agent uses it with --snapshot-key {0}.",
            output.display()
        ));
    }
    Ok(failure::SUCCESS)
}

async fn generate(args: &GenerateArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let asking = ask(
        &client,
        Order::Generate(Box::new(args.spec(&context.settings))),
    );
    let (views, warnings) = tokio::select! {
        asked = asking => asked?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    if !warnings.is_empty() && !terminal.json {
        tell(findings::report(&args.source, &warnings, terminal.err).trim_end());
    }
    let Some(view) = views.into_iter().next() else {
        let text = "the coordinator did not say which snapshot it makes";
        return Err(Failure::new(FaultKind::Failed, text).on(&args.source));
    };
    if args.detach {
        client.close().await;
        if terminal.json {
            print_json(&json::snapshot(&view));
        } else {
            print_line(&format!(
                "snapshot {} of {} is being made; follow it with: steep-repl snapshot show {0}",
                view.snapshot_id, view.source_node
            ));
        }
        return Ok(failure::SUCCESS);
    }
    let id = view.snapshot_id;
    let followed = tokio::select! {
        followed = follow(&mut client, view, context) => followed?,
        _ = signals.next() => {
            tell(&format!(
                "\nthe snapshot goes on without this command: steep-repl snapshot show {id}; to stop and \
                 remove it: steep-repl snapshot delete {id}"
            ));
            return Ok(failure::SUCCESS);
        }
    };
    client.close().await;
    if followed.state != SnapshotState::Sealed {
        return Err(not_made(&followed));
    }
    if terminal.json {
        print_json(&json::generated(&followed));
    } else {
        print_folded(&stored::full(&followed, terminal.out));
    }
    Ok(failure::SUCCESS)
}

/// Shows how far it is until it is complete or lost, over lost connections: it is made without this command.
async fn follow(
    client: &mut Client,
    view: SnapshotView,
    context: &Context,
) -> Result<SnapshotView, Failure> {
    let mut shown = Shown::new(view, context.terminal);
    loop {
        let lost = match shown.follow(client).await {
            Ok(()) => return Ok(shown.finish()),
            Err(ReplyError::Refused(failure)) => return Err(failure),
            Err(ReplyError::Lost(failure)) => failure,
        };
        shown.note(&format!(
            "{}; dialling {} again",
            failure::line(&lost.0),
            client.address()
        ));
        let mut redial = Redial::begin(lost);
        while let Err(failure) = client.reconnect().await {
            redial.failed(failure)?.wait().await;
        }
        shown.note("connected again");
    }
}

/// What is shown of a snapshot that is being made.
struct Shown {
    last: SnapshotView,
    terminal: Terminal,
    bar: Option<ProgressBar>,
    line: String,
}

impl Shown {
    fn new(view: SnapshotView, terminal: Terminal) -> Self {
        Self {
            last: view,
            terminal,
            bar: terminal.live.then(stored::bar),
            line: String::new(),
        }
    }

    /// Shows what the coordinator reports until it has no more to say.
    async fn follow(&mut self, client: &Client) -> Result<(), ReplyError> {
        let snapshot = self.last.snapshot_id;
        let asked = client.ask(ApiRequest::Snapshot { snapshot }).await;
        let mut replies = asked.map_err(ReplyError::Lost)?;
        while let Some(reply) = replies.next().await? {
            if let ApiReply::Snapshots(views) = reply
                && let Some(view) = views.into_iter().next()
            {
                self.show(view);
            }
        }
        Ok(())
    }

    fn show(&mut self, view: SnapshotView) {
        if self.terminal.json {
            print_json(&json::snapshot(&view));
        } else if let Some(bar) = &self.bar {
            stored::advance(bar, &view);
        } else {
            let line = stored::line(&view);
            if line != self.line {
                print_line(&line);
                self.line = line;
            }
        }
        self.last = view;
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }

    fn finish(self) -> SnapshotView {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.last
    }
}

fn not_made(view: &SnapshotView) -> Failure {
    let why = view
        .error_message
        .as_deref()
        .unwrap_or("it was deleted meanwhile");
    let text = format!("snapshot {} could not be made: {why}", view.snapshot_id);
    let hint = view.hint.clone().unwrap_or_default();
    Failure::new(FaultKind::Failed, text).hint(hint)
}

/// The snapshots of that id, and of a node, or of all.
pub(super) async fn known(
    client: &Client,
    snapshot: Option<SnapshotId>,
    source: Option<NodeId>,
) -> Result<Vec<SnapshotView>, Failure> {
    let (views, _) = ask(client, Query::Snapshots { snapshot, source }).await?;
    Ok(views)
}

async fn list(source: Option<NodeId>, context: &Context) -> Result<u8, Failure> {
    let query = Query::Snapshots {
        snapshot: None,
        source,
    };
    let views = answered(query, context).await?;
    if context.terminal.json {
        print_json(&json::snapshots(&views));
    } else {
        print(&stored::list(&views, context.terminal.out));
    }
    Ok(failure::SUCCESS)
}

async fn show(id: SnapshotId, context: &Context) -> Result<u8, Failure> {
    let query = Query::Snapshots {
        snapshot: Some(id),
        source: None,
    };
    for view in answered(query, context).await? {
        if context.terminal.json {
            print_json(&json::snapshot(&view));
        } else {
            print_folded(&stored::full(&view, context.terminal.out));
        }
    }
    Ok(failure::SUCCESS)
}

async fn answered(query: Query, context: &Context) -> Result<Vec<SnapshotView>, Failure> {
    let mut signals = Signals::catch()?;
    let client = context.client().await?;
    let (views, _) = tokio::select! {
        asked = ask(&client, query) => asked?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    client.close().await;
    Ok(views)
}

async fn delete(
    id: SnapshotId,
    (force, yes): (bool, bool),
    context: &Context,
) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let client = context.client().await?;
    let query = Query::Snapshots {
        snapshot: Some(id),
        source: None,
    };
    let (views, _) = ask(&client, query).await?;
    if let Some(view) = views.first()
        && !yes
        && context.terminal.interactive
    {
        let files = view.location.as_ref();
        let files = files.map_or_else(String::new, |place| format!("its files in {place}, "));
        let question = format!(
            "Remove snapshot {id} of {}, {files}its slot and its publication?",
            view.source_node
        );
        let confirmed = tokio::select! {
            confirmed = terminal::confirm(&question) => confirmed,
            _ = signals.next() => false,
        };
        if !confirmed {
            return Err(Failure::new(FaultKind::Failed, "nothing was removed"));
        }
    }
    let order = Order::DeleteSnapshot {
        snapshot: id,
        force,
    };
    let replies = tokio::select! {
        replies = client.ask_all(order) => replies?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    client.close().await;
    for reply in replies {
        if let ApiReply::Left(left) = reply {
            left.iter()
                .for_each(|text| tell(&format!("left: {}", clean(text))));
        }
    }
    if context.terminal.json {
        print_json(&json::snapshot_deleted(id));
    } else {
        print_line(&format!("snapshot {id} is deleted"));
    }
    Ok(failure::SUCCESS)
}

/// The snapshots and the findings of an answer.
async fn ask(
    client: &Client,
    request: impl Into<ApiRequest>,
) -> Result<(Vec<SnapshotView>, Vec<Finding>), Failure> {
    let (mut views, mut warnings) = (Vec::new(), Vec::new());
    for reply in client.ask_all(request).await? {
        match reply {
            ApiReply::Snapshots(more) => views.extend(more),
            ApiReply::Findings { findings, .. } => warnings.extend(findings),
            _ => {}
        }
    }
    Ok((views, warnings))
}
