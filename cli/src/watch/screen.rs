//! The terminal as a screen: taken, drawn on, and given back whatever happens.

use std::io::{self, BufWriter, Stdout, Write as _};
use std::sync::Once;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use ratatui::crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute, queue};

use super::model::Model;
use super::view::{self, theme::Theme};

/// A full frame of a large screen fits, so that each frame is one write.
const FRAME_BYTES: usize = 128 * 1024;

/// Whether clicks and the wheel come to us; then the terminal's own selection of text needs Shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mouse {
    /// They stay with the terminal.
    Terminal,
    /// They come to us.
    Ours,
}

/// The screen, ours until it is dropped.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    theme: Theme,
}

impl Screen {
    /// Takes the terminal; a panic gives it back before it is told.
    ///
    /// # Errors
    /// Where the terminal cannot be had.
    pub(crate) fn take(theme: Theme, mouse: Mouse) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        let taken = Self::draw_on(theme, mouse);
        if taken.is_err() {
            give_back();
        }
        taken
    }

    fn draw_on(theme: Theme, mouse: Mouse) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(FRAME_BYTES, io::stdout());
        execute!(out, EnterAlternateScreen, cursor::Hide)?;
        if mouse == Mouse::Ours {
            execute!(out, EnableMouseCapture)?;
        }
        let terminal = Terminal::new(CrosstermBackend::new(out))?;
        let mut screen = Self { terminal, theme };
        screen.clear()?;
        Ok(screen)
    }

    /// Draws the model. Only what differs from what is there is written, and terminals that can
    /// show it at once.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub(crate) fn draw(&mut self, model: &Model) -> io::Result<()> {
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        let theme = &self.theme;
        self.terminal
            .draw(|frame| view::draw(model, theme, frame.area(), frame.buffer_mut()))?;
        queue!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        self.terminal.backend_mut().flush()
    }

    /// Draws everything anew next time.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        // Not by `Terminal::clear`, which asks the terminal where its cursor is: the answer comes
        // among the keys, and over a slow line too late.
        let area = self.area()?;
        self.terminal.resize(area)
    }

    /// Rows and columns.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub(crate) fn area(&self) -> io::Result<ratatui::layout::Rect> {
        let size = self.terminal.size()?;
        Ok(ratatui::layout::Rect::new(0, 0, size.width, size.height))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Nobody is left to hear that a terminal is gone.
fn give_back() {
    let mut out = io::stdout();
    let _ = execute!(out, DisableMouseCapture, LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}
