//! The terminal in full-screen mode, restored whatever happens.
//!
//! A thread writes to the terminal, so that a stalled one (ssh, tmux) holds up nothing else. The thread
//! draws the newest frame and skips those it was too slow for.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::time::Duration;

use ratatui::backend::{Backend as _, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{
    DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture,
};
use ratatui::crossterm::terminal::{
    self, BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen,
};
use ratatui::crossterm::{cursor, queue};
use ratatui::layout::Rect;
use tokio::sync::oneshot;

/// How long restoring may take. A stalled terminal is left as it is.
const GIVE_BACK: Duration = Duration::from_millis(500);

/// Who gets mouse events. If we do, selecting text in the terminal needs Shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mouse {
    Terminal,
    Ours,
}

/// Whether we are in full-screen mode. Accessed with stdout locked, so that nothing is drawn after a panic
/// restored the terminal.
static OURS: AtomicBool = AtomicBool::new(false);

/// Full-screen mode until dropped.
pub(crate) struct Screen {
    slot: Arc<Slot>,
    /// The error that ended the thread.
    broken: oneshot::Receiver<io::Error>,
    /// Closes once the terminal is restored.
    given_back: mpsc::Receiver<()>,
}

impl Screen {
    /// Enters full-screen mode. A panic restores the terminal before it prints.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub(crate) fn take(mouse: Mouse) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        terminal::enable_raw_mode()?;
        let slot = Arc::new(Slot::default());
        let (tell, broken) = oneshot::channel();
        let (giving_back, given_back) = mpsc::channel();
        let painter = Painter {
            slot: Arc::clone(&slot),
            shown: Buffer::empty(Rect::ZERO),
            _giving_back: giving_back,
        };
        std::thread::spawn(move || {
            if let Err(error) = painter.run(mouse) {
                // Fails if the screen is dropped.
                let _ = tell.send(error);
            }
        });
        Ok(Self {
            slot,
            broken,
            given_back,
        })
    }

    /// Queues a frame in place of a waiting one. Never blocks.
    pub(crate) fn show(&self, frame: Buffer) {
        self.slot.change(|waiting| waiting.frame = Some(frame));
    }

    /// Makes the next frame redraw everything.
    pub(crate) fn renew(&self) {
        self.slot.change(|waiting| waiting.renew = true);
    }

    /// Waits for the error that ends the thread. Cancel-safe.
    pub(crate) async fn broken(&mut self) -> io::Error {
        let broken = (&mut self.broken).await;
        broken.unwrap_or_else(|_| io::Error::other("what draws on it has stopped"))
    }

    /// Rows and columns.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub(crate) fn area() -> io::Result<Rect> {
        let (width, height) = terminal::size()?;
        Ok(Rect::new(0, 0, width, height))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.slot.change(|waiting| waiting.over = true);
        // On error the thread has ended. Leaving raw mode needs no write.
        let _ = self.given_back.recv_timeout(GIVE_BACK);
        let _ = terminal::disable_raw_mode();
    }
}

/// The next frame.
#[derive(Debug, Default)]
struct Slot {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    frame: Option<Buffer>,
    renew: bool,
    over: bool,
}

impl Slot {
    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A poisoned lock is harmless: the values are always valid.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next frame, and whether to redraw everything; `None` at the end.
    fn next(&self) -> Option<(Buffer, bool)> {
        let mut waiting = self.lock();
        loop {
            if waiting.over {
                return None;
            }
            if let Some(frame) = waiting.frame.take() {
                return Some((frame, std::mem::take(&mut waiting.renew)));
            }
            let woken = self.changed.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread that writes.
struct Painter {
    slot: Arc<Slot>,
    shown: Buffer,
    _giving_back: mpsc::Sender<()>,
}

impl Painter {
    fn run(mut self, mouse: Mouse) -> io::Result<()> {
        let mut bytes = Vec::new();
        queue!(
            bytes,
            EnterAlternateScreen,
            cursor::Hide,
            EnableBracketedPaste
        )?;
        if mouse == Mouse::Ours {
            queue!(bytes, EnableMouseCapture)?;
        }
        {
            let mut out = io::stdout().lock();
            OURS.store(true, Ordering::SeqCst);
            out.write_all(&bytes)?;
            out.flush()?;
        }
        let drawn = self.draw_all();
        give_back();
        drawn
    }

    fn draw_all(&mut self) -> io::Result<()> {
        while let Some((frame, renew)) = self.slot.next() {
            let bytes = difference(&mut self.shown, frame, renew)?;
            let mut out = io::stdout().lock();
            if !OURS.load(Ordering::SeqCst) {
                return Ok(());
            }
            out.write_all(&bytes)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// The bytes that lead from what is shown to that frame, which is shown then. Only what differs is
/// written, and terminals that can show it at once. A frame of another size, or one to `renew`, is
/// written whole; what was there is cleared together with it, so that nothing flashes.
fn difference(shown: &mut Buffer, frame: Buffer, renew: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    queue!(bytes, BeginSynchronizedUpdate)?;
    if renew || shown.area != frame.area {
        queue!(bytes, Clear(ClearType::All))?;
        *shown = Buffer::empty(frame.area);
    }
    CrosstermBackend::new(&mut bytes).draw(shown.diff(&frame).into_iter())?;
    queue!(bytes, EndSynchronizedUpdate)?;
    *shown = frame;
    Ok(bytes)
}

/// Ignores errors: the terminal may be gone.
fn give_back() {
    let mut bytes = Vec::new();
    let _ = queue!(
        bytes,
        DisableMouseCapture,
        DisableBracketedPaste,
        LeaveAlternateScreen,
        cursor::Show
    );
    let mut out = io::stdout().lock();
    if OURS.swap(false, Ordering::SeqCst) {
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
    }
    let _ = terminal::disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use ratatui::style::Style;

    use super::*;

    fn frame(width: u16, text: &str) -> Buffer {
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, 1));
        buffer.set_string(0, 0, text, Style::new());
        buffer
    }

    fn written(shown: &mut Buffer, next: Buffer, renew: bool) -> String {
        String::from_utf8(difference(shown, next, renew).unwrap()).unwrap()
    }

    #[test]
    fn only_what_differs_is_written_and_clearing_is_part_of_the_frame() {
        const CLEAR: &str = "\u{1b}[2J";
        let mut shown = Buffer::empty(Rect::ZERO);
        let first = written(&mut shown, frame(5, "abcde"), false);
        assert!(first.starts_with("\u{1b}[?2026h\u{1b}[2J"), "{first:?}");
        assert!(first.contains("abcde"), "{first:?}");
        assert!(first.ends_with("\u{1b}[?2026l"), "{first:?}");
        let second = written(&mut shown, frame(5, "abXde"), false);
        assert!(second.contains('X') && !second.contains('a'), "{second:?}");
        assert!(!second.contains(CLEAR), "{second:?}");
        for (width, renew) in [(5, true), (4, false)] {
            let again = written(&mut shown, frame(width, "abXd"), renew);
            assert!(again.contains("abXd"), "{again:?}");
            assert_eq!(again.matches(CLEAR).count(), 1, "{again:?}");
            let clear = again.find(CLEAR).unwrap();
            assert!(again.find("\u{1b}[?2026h").unwrap() < clear, "{again:?}");
        }
    }

    #[test]
    fn the_newest_frame_is_drawn_and_those_before_it_are_not() {
        let slot = Slot::default();
        slot.change(|waiting| waiting.frame = Some(frame(1, "a")));
        slot.change(|waiting| waiting.renew = true);
        slot.change(|waiting| waiting.frame = Some(frame(1, "b")));
        assert_eq!(slot.next(), Some((frame(1, "b"), true)));
        slot.change(|waiting| waiting.frame = Some(frame(1, "c")));
        slot.change(|waiting| waiting.over = true);
        assert_eq!(slot.next(), None);
    }
}
