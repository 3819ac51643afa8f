//! Reads terminal events in a thread, which ends when the receiver is dropped.

use std::time::Duration;

use ratatui::crossterm::event::{
    self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEventKind,
};
use tokio::sync::mpsc;

use super::keys::Input;

/// How often the thread checks whether the receiver is dropped.
const LOOK: Duration = Duration::from_millis(200);

/// Inputs waiting to be handled.
const QUEUE: usize = 64;

/// An event of the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UserInput {
    /// A key, or another event without a position.
    Input(Input),
    /// A click, with the line.
    Click(u16),
    /// Pasted text.
    Paste(String),
}

/// Starts reading. The channel closes when the terminal is gone.
pub(super) fn listen() -> mpsc::Receiver<UserInput> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            let Ok(event) = event::read() else { return };
            if let Some(input) = meaning(&event)
                && sender.blocking_send(input).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn meaning(event: &Event) -> Option<UserInput> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => {
            key_meaning(*key).map(UserInput::Input)
        }
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::Down(MouseButton::Left) => Some(UserInput::Click(mouse.row)),
            MouseEventKind::ScrollUp => Some(UserInput::Input(Input::Up(1))),
            MouseEventKind::ScrollDown => Some(UserInput::Input(Input::Up(-1))),
            _ => None,
        },
        Event::Resize(..) => Some(UserInput::Input(Input::Redraw)),
        Event::Paste(text) => Some(UserInput::Paste(text.clone())),
        _ => None,
    }
}

fn key_meaning(key: KeyEvent) -> Option<Input> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c') if control => Input::Interrupt,
        KeyCode::Char('l') if control => Input::Redraw,
        KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => Input::Char(c),
        KeyCode::Enter => Input::Enter,
        KeyCode::Esc => Input::Escape,
        KeyCode::Backspace => Input::Backspace,
        KeyCode::Tab => Input::Tab,
        KeyCode::Up => Input::Up(1),
        KeyCode::Down => Input::Up(-1),
        KeyCode::PageUp => Input::PageUp,
        KeyCode::PageDown => Input::PageDown,
        KeyCode::Home => Input::Home,
        KeyCode::End => Input::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_c_is_no_letter_and_other_controls_are_nothing() {
        let with = |c, modifiers| key_meaning(KeyEvent::new(KeyCode::Char(c), modifiers));
        assert_eq!(with('c', KeyModifiers::CONTROL), Some(Input::Interrupt));
        assert_eq!(with('c', KeyModifiers::NONE), Some(Input::Char('c')));
        assert_eq!(with('G', KeyModifiers::SHIFT), Some(Input::Char('G')));
        assert_eq!(with('q', KeyModifiers::CONTROL), None);
        assert_eq!(with('y', KeyModifiers::ALT), None);
    }
}
