//! `steep-repl watch`: the cluster before your eyes.
//!
//! `link` (what the coordinator says) and `input` (what a person does) → `model` and `keys` (pure) →
//! `view` (pure, from the model to a frame) → `screen` (the terminal). Nothing here decides anything
//! about a job: whoever watches may go at any time.

mod actions;
mod choice;
mod input;
mod keys;
mod link;
mod model;
mod outside;
mod screen;
mod view;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use ratatui::buffer::Buffer;
use steep_protocol::FaultKind;
use tokio::time::MissedTickBehavior;

use self::input::Came;
use self::keys::{Effect, Input};
use self::link::Conversation;
use self::model::{Model, Tone};
pub(crate) use self::screen::Mouse;
use self::screen::Screen;
pub(crate) use self::view::theme::Theme;
use crate::client::Client;
use crate::failure::Failure;
use crate::signals::Signals;

/// Between two frames while there is news: smooth, and a trickle over a slow line.
const FRAME: Duration = Duration::from_millis(100);

/// Without any news the clock on the screen still goes on.
const IDLE: Duration = Duration::from_secs(1);

/// News taken in before the next frame.
const NEWS_A_FRAME: usize = 1_000;

/// Shows the cluster until somebody has seen enough.
///
/// # Errors
/// [`Failure`] where the terminal cannot be had or is gone, or where something of ours broke.
pub(crate) async fn run(
    client: Client,
    signals: &mut Signals,
    theme: Theme,
    mouse: Mouse,
) -> Result<(), Failure> {
    let mut model = Model::new(client.address(), Timestamp::now());
    let mut conversation = Conversation::begin(client);
    let shown = match Screen::take(mouse) {
        Ok(screen) => show(&mut model, screen, &theme, &mut conversation, signals).await,
        Err(error) => Err(no_terminal(&error)),
    };
    conversation.end().await;
    shown
}

/// The loop: news, inputs, signals and time in; frames out. The terminal is given back at its end.
async fn show(
    model: &mut Model,
    mut screen: Screen,
    theme: &Theme,
    conversation: &mut Conversation,
    signals: &mut Signals,
) -> Result<(), Failure> {
    // After the screen is ours: what is typed before belongs to the shell.
    let mut inputs = input::listen();
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drawn = tokio::time::Instant::now();
    let mut dirty = true;
    loop {
        tokio::select! {
            // Somebody who presses a key is never kept waiting by news.
            biased;
            _ = signals.next() => return Ok(()),
            came = inputs.recv() => {
                // A terminal that can't be read is gone.
                let Some(came) = came else { return Ok(()) };
                let effect = match came {
                    Came::Input(input) => keys::press(model, input),
                    Came::Click(line) => clicked(model, line),
                    Came::Paste(text) => {
                        keys::paste(model, &text);
                        None
                    }
                };
                // Soon rather than now: while a window is pulled larger, sizes come by the dozen.
                dirty = true;
                match effect {
                    Some(Effect::Quit) => return Ok(()),
                    Some(Effect::Redraw) => {
                        screen.renew();
                        continue;
                    }
                    Some(effect) if !conversation.order(effect.clone()) => {
                        model.say("too much is being asked for already", Tone::Bad);
                    }
                    Some(_) | None => {}
                }
                draw(model, &screen, theme)?;
                drawn = tokio::time::Instant::now();
                dirty = false;
            }
            _ = frames.tick() => {
                if dirty || drawn.elapsed() >= IDLE {
                    draw(model, &screen, theme)?;
                    drawn = tokio::time::Instant::now();
                    dirty = false;
                }
            }
            news = conversation.next() => {
                // It ends by itself only where it broke.
                let news = news.ok_or_else(broken)?;
                let now = Timestamp::now();
                model.apply(news, now);
                for _ in 0..NEWS_A_FRAME {
                    let Some(news) = conversation.ready() else { break };
                    model.apply(news, now);
                }
                dirty = true;
            }
            // Last: where something of ours broke, the screen was given back because of that.
            error = screen.broken() => return Err(no_terminal(&error)),
        }
    }
}

fn draw(model: &mut Model, screen: &Screen, theme: &Theme) -> Result<(), Failure> {
    model.at(Timestamp::now());
    let area = Screen::area().map_err(|error| no_terminal(&error))?;
    let mut frame = Buffer::empty(area);
    let drawn = view::draw(model, theme, area, &mut frame);
    model.drawn(drawn);
    screen.show(frame);
    Ok(())
}

fn clicked(model: &mut Model, line: u16) -> Option<Effect> {
    let area = Screen::area().ok()?;
    let row = view::row_at(model, area, line)?;
    keys::press(model, Input::Row(row))
}

fn broken() -> Failure {
    Failure::new(
        FaultKind::Failed,
        "watching broke off by an error of this program",
    )
    .hint("jobs go on: start `steep-repl watch` again, and report what it said before")
}

fn no_terminal(error: &io::Error) -> Failure {
    Failure::new(
        FaultKind::Failed,
        format!("the terminal cannot be used: {error}"),
    )
}
