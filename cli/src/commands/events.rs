//! `steep-repl events`.

use std::collections::VecDeque;

use jiff::Timestamp;
use steep_protocol::message::api::{ApiReply, ApiRequest, AuditView, EventView};

use super::{Context, interruptible};
use crate::args::{EventsArgs, Level};
use crate::client::{Client, ReplyError};
use crate::failure::{self, Failure};
use crate::redial::Redial;
use crate::render::{audit, events, json};
use crate::signals::Signals;
use crate::terminal::{Terminal, print_json, print_line, tell};

/// Past events printed as text if neither `--limit` nor `--since` is given.
const LIMIT: usize = 100;

pub(super) async fn run(args: EventsArgs, context: &Context) -> Result<u8, Failure> {
    if !args.follow {
        return interruptible(past(&args, context)).await;
    }
    // A signal is the usual way to end this: no error.
    let mut signals = Signals::catch()?;
    tokio::select! {
        done = follow(&args, context) => done,
        _ = signals.next() => Ok(failure::SUCCESS),
    }
}

async fn past(args: &EventsArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    if args.audit {
        print_audit(&client, args, context.terminal).await?;
    } else {
        print_past(&client, args, context.terminal).await?;
    }
    client.close().await;
    Ok(failure::SUCCESS)
}

/// Past and new events. Reconnects to a coordinator that went away, and shows no event twice.
async fn follow(args: &EventsArgs, context: &Context) -> Result<u8, Failure> {
    let mut client = context.client().await?;
    let mut last = print_past(&client, args, context.terminal).await?;
    loop {
        let why = match print_new(&client, args, &mut last, context.terminal).await {
            Ok(()) => break,
            Err(ReplyError::Refused(failure)) => return Err(failure),
            Err(ReplyError::Lost(failure)) => failure,
        };
        tell(&format!(
            "{}; dialling {} again",
            failure::line(&why.0),
            client.address()
        ));
        let mut redial = Redial::begin(why);
        // Also before the first attempt, in case the coordinator dies again and again.
        redial.wait().await;
        while let Err(failure) = client.reconnect().await {
            redial.failed(failure)?.wait().await;
        }
        tell("connected again");
    }
    client.close().await;
    Ok(failure::SUCCESS)
}

fn request(args: &EventsArgs, follow: bool, after: u64) -> ApiRequest {
    let node = args.node.clone();
    ApiRequest::Events {
        node,
        follow,
        after,
    }
}

/// Prints past events; returns the number of the last event.
async fn print_past(
    client: &Client,
    args: &EventsArgs,
    terminal: Terminal,
) -> Result<u64, ReplyError> {
    let mut newest = Newest::new(args, terminal);
    let mut last = 0;
    let asked = client.ask(request(args, false, 0)).await;
    let mut replies = asked.map_err(ReplyError::Lost)?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Event(event) = reply {
            last = event.seq.max(last);
            if Level::of(&event.level) >= args.level {
                newest.push(event.timestamp, event);
            }
        }
    }
    newest.print("events", |event| print_event(event, terminal));
    Ok(last)
}

/// Prints new events and advances `last`.
async fn print_new(
    client: &Client,
    args: &EventsArgs,
    last: &mut u64,
    terminal: Terminal,
) -> Result<(), ReplyError> {
    let asked = client.ask(request(args, true, *last)).await;
    let mut replies = asked.map_err(ReplyError::Lost)?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Event(event) = reply {
            *last = event.seq.max(*last);
            if Level::of(&event.level) >= args.level {
                print_event(&event, terminal);
            }
        }
    }
    Ok(())
}

fn print_event(event: &EventView, terminal: Terminal) {
    if terminal.json {
        print_json(&json::event(event));
    } else {
        print_line(&events::event(event, terminal.out));
    }
}

async fn print_audit(
    client: &Client,
    args: &EventsArgs,
    terminal: Terminal,
) -> Result<(), Failure> {
    let mut newest = Newest::new(args, terminal);
    let node = args.node.clone();
    let mut replies = client.ask(ApiRequest::Audit { node }).await?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Audit(entries) = reply {
            for entry in entries {
                newest.push(entry.timestamp, entry);
            }
        }
    }
    newest.print("entries", |entry: &AuditView| {
        if terminal.json {
            print_json(&json::audit_entry(entry));
        } else {
            print_line(&audit::entry(entry, terminal.out));
        }
    });
    Ok(())
}

/// Collects the newest records.
struct Newest<T> {
    since: Timestamp,
    limit: usize,
    /// Whether the user gave the limit.
    chosen: bool,
    kept: VecDeque<T>,
    found: u64,
}

impl<T> Newest<T> {
    fn new(args: &EventsArgs, terminal: Terminal) -> Self {
        let all = terminal.json || args.since.is_some();
        let default = if all { usize::MAX } else { LIMIT };
        Self {
            since: args
                .since
                .map_or(Timestamp::MIN, |since| since.at(Timestamp::now())),
            limit: args.limit.unwrap_or(default),
            chosen: args.limit.is_some(),
            kept: VecDeque::new(),
            found: 0,
        }
    }

    fn push(&mut self, at: Timestamp, record: T) {
        if at < self.since {
            return;
        }
        self.found += 1;
        self.kept.push_back(record);
        if self.kept.len() > self.limit {
            self.kept.pop_front();
        }
    }

    fn print(&self, what: &str, print: impl Fn(&T)) {
        let shown = self.kept.len() as u64;
        if shown < self.found && !self.chosen {
            tell(&format!(
                "the newest {shown} of {} {what}; --limit N or --since WHEN shows more",
                self.found
            ));
        }
        self.kept.iter().for_each(print);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::render::Paint;
    use crate::render::samples::at;

    fn kept(line: &[&str], json: bool, records: i64) -> Vec<i64> {
        let line = ["steep-repl", "events"].iter().chain(line);
        let Some(Command::Events(args)) = Cli::parse_from(line).command else {
            panic!("another command");
        };
        let terminal = Terminal {
            live: false,
            interactive: false,
            out: Paint::Plain,
            err: Paint::Plain,
            json,
        };
        let mut newest = Newest::new(&args, terminal);
        for second in 0..records {
            newest.push(at(second), second);
        }
        newest.kept.into_iter().collect()
    }

    #[test]
    fn the_newest_are_shown_and_all_where_a_time_or_json_is_wanted() {
        assert_eq!(kept(&["--limit", "2"], true, 5), [3, 4]);
        assert!(kept(&["--limit", "0"], false, 5).is_empty());
        assert_eq!(kept(&[], false, 150).len(), 100);
        assert_eq!(kept(&[], true, 150).len(), 150);
        let since = at(10).to_string();
        assert_eq!(kept(&["--since", &since], false, 150).len(), 140);
        assert_eq!(
            kept(&["--since", &since, "--limit", "1"], false, 150),
            [149]
        );
    }
}
