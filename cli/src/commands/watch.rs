//! `steep-repl watch`.

use steep_protocol::FaultKind;
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::quic::Tuning;

use super::Context;
use crate::args::WatchArgs;
use crate::client::{Client, ReplyError};
use crate::failure::{self, Failure};
use crate::redial::Redial;
use crate::render::json;
use crate::signals::Signals;
use crate::terminal::{self, print_json, tell};
use crate::watch::{self, Mouse, Theme};

/// The screen; or, for programs, everything it would be drawn from, an object a line. A signal is
/// how watching ends: no error.
pub(super) async fn run(args: &WatchArgs, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    if context.terminal.json {
        return tokio::select! {
            done = stream(context) => done,
            _ = signals.next() => Ok(failure::SUCCESS),
        };
    }
    if !terminal::is_screen() {
        let text = "watch draws on a terminal, and this is none";
        return Err(Failure::bad_request(text).hint(
            "`steep-repl watch --json` and `steep-repl events --follow` write lines instead",
        ));
    }
    let client = Client::connect(context.settings.access()?, Tuning::WATCHING).await?;
    let mouse = if args.mouse {
        Mouse::Ours
    } else {
        Mouse::Terminal
    };
    watch::run(client, &mut signals, Theme::of_environment(), mouse).await?;
    Ok(failure::SUCCESS)
}

async fn stream(context: &Context) -> Result<u8, Failure> {
    let mut client = context.client().await?;
    let mut last = 0;
    loop {
        let why = match lines(&client, &mut last).await {
            Ok(()) => Failure::new(FaultKind::Unreachable, "the coordinator stopped telling"),
            Err(ReplyError::Refused(failure)) => return Err(failure),
            Err(ReplyError::Lost(failure)) => failure,
        };
        tell(&format!("{}; dialling again", failure::line(&why.0)));
        let mut redial = Redial::begin(why);
        redial.wait().await;
        while let Err(failure) = client.reconnect().await {
            redial.failed(failure)?.wait().await;
        }
    }
}

/// Each connection begins with the newest events: those up to `last` have been written.
async fn lines(client: &Client, last: &mut u64) -> Result<(), ReplyError> {
    let mut replies = client
        .ask(ApiRequest::Watch)
        .await
        .map_err(ReplyError::Lost)?;
    while let Some(reply) = replies.next().await? {
        match reply {
            ApiReply::Nodes(nodes) => print_json(&json::nodes(&nodes, None)),
            ApiReply::Progress(view) => print_json(&json::progress(&view)),
            ApiReply::Event(event) if event.seq > *last => {
                *last = event.seq;
                print_json(&json::event(&event));
            }
            ApiReply::Ended(end) => print_json(&json::end(&end)),
            // Events that were written; answers to other questions; the stream's end and faults never
            // get here.
            ApiReply::Event(_)
            | ApiReply::Findings { .. }
            | ApiReply::Accepted { .. }
            | ApiReply::Audit(_)
            | ApiReply::Schema(_)
            | ApiReply::Captured { .. }
            | ApiReply::Job(_)
            | ApiReply::Prepared(_)
            | ApiReply::Missing(_)
            | ApiReply::DetachPlan(_)
            | ApiReply::Tables(_)
            | ApiReply::Rebuilt(_)
            | ApiReply::Left(_)
            | ApiReply::Snapshots(_)
            | ApiReply::Verified(_)
            | ApiReply::Found(_)
            | ApiReply::End
            | ApiReply::Adjusted(_)
            | ApiReply::Verifying(_)
            | ApiReply::Compared(_)
            | ApiReply::Switchover(_)
            | ApiReply::Repaired(_)
            | ApiReply::TableCompared(_)
            | ApiReply::Fault(_) => {}
        }
    }
    Ok(())
}
