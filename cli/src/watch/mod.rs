//! `steep-repl watch`: the cluster on a screen.
//!
//! `connection` (updates) and `input` (keys) → `model` and `keys` (pure) → `view` (pure, draws a frame) →
//! `screen` (the terminal).

mod actions;
mod connection;
mod input;
mod keys;
mod model;
mod sanitize;
mod screen;
mod state;
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

use self::connection::Connection;
use self::input::UserInput;
use self::keys::{Effect, Input};
use self::model::{Model, Tone};
pub(crate) use self::screen::Mouse;
use self::screen::Screen;
pub(crate) use self::view::theme::Theme;
use crate::client::Client;
use crate::failure::Failure;
use crate::signals::Signals;

/// The interval of frames while updates arrive: smooth, and little to send over a slow line.
const FRAME: Duration = Duration::from_millis(100);

/// The interval without updates, for the clock on the screen.
const IDLE: Duration = Duration::from_secs(1);

/// The most updates applied before a frame.
const UPDATES_PER_FRAME: usize = 1_000;

/// Shows the cluster until the user quits.
///
/// # Errors
/// [`Failure`] if the terminal refuses or is gone, or on an internal error.
pub(crate) async fn run(
    client: Client,
    signals: &mut Signals,
    theme: Theme,
    mouse: Mouse,
) -> Result<(), Failure> {
    let mut model = Model::new(client.address(), Timestamp::now());
    let mut connection = Connection::start(client);
    let shown = match Screen::take(mouse) {
        Ok(screen) => show(&mut model, screen, &theme, &mut connection, signals).await,
        Err(error) => Err(no_terminal(&error)),
    };
    connection.close().await;
    shown
}

/// The main loop. Restores the terminal at its end.
async fn show(
    model: &mut Model,
    mut screen: Screen,
    theme: &Theme,
    connection: &mut Connection,
    signals: &mut Signals,
) -> Result<(), Failure> {
    // After the screen is taken: earlier input belongs to the shell.
    let mut inputs = input::listen();
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drawn = tokio::time::Instant::now();
    let mut dirty = true;
    loop {
        tokio::select! {
            // Keys come before updates.
            biased;
            _ = signals.next() => return Ok(()),
            input = inputs.recv() => {
                // The terminal is gone.
                let Some(input) = input else { return Ok(()) };
                let effect = match input {
                    UserInput::Input(input) => keys::press(model, input),
                    UserInput::Click(line) => clicked(model, line),
                    UserInput::Paste(text) => {
                        keys::paste(model, &text);
                        None
                    }
                };
                // A resize redraws at the next tick: resizing a window sends dozens of them.
                dirty = true;
                match effect {
                    Some(Effect::Quit) => return Ok(()),
                    Some(Effect::Redraw) => {
                        screen.renew();
                        continue;
                    }
                    Some(effect) if !connection.send(effect.clone()) => {
                        model.notify("too many actions are waiting already", Tone::Error);
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
            update = connection.next() => {
                // The task ends by itself only after a panic.
                let update = update.ok_or_else(broken)?;
                let now = Timestamp::now();
                model.apply(update, now);
                for _ in 0..UPDATES_PER_FRAME {
                    let Some(update) = connection.try_next() else { break };
                    model.apply(update, now);
                }
                dirty = true;
            }
            // Last, so that a panic of the task is reported first.
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
        "watch stopped after an error of this program",
    )
    .hint("jobs go on: start `steep-repl watch` again, and report what it said before")
}

fn no_terminal(error: &io::Error) -> Failure {
    Failure::new(
        FaultKind::Failed,
        format!("the terminal cannot be used: {error}"),
    )
}
