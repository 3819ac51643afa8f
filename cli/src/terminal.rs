//! The terminal we were started on: whether there is one, asking a person, printing.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::Value;
use tokio::sync::oneshot;

use crate::failure::ERROR;
use crate::render::{Paint, fold};

/// What the process may assume about its streams. Found once, at the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// stdout and stderr are a terminal that can move its cursor.
    pub(crate) live: bool,
    /// A person can be asked.
    pub(crate) interactive: bool,
    /// Colours on stdout.
    pub(crate) out: Paint,
    /// Colours on stderr.
    pub(crate) err: Paint,
    /// Machine output is wanted.
    pub(crate) json: bool,
}

impl Terminal {
    /// Looks at the process's streams and environment.
    pub(crate) fn detect(json: bool) -> Self {
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = !no_color() && !dumb;
        let paint = |terminal| {
            if terminal && colour {
                Paint::Ansi
            } else {
                Paint::Plain
            }
        };
        Self {
            live: out && err && !dumb && !json,
            interactive: io::stdin().is_terminal() && err,
            out: paint(out),
            err: paint(err),
            json,
        }
    }
}

/// Whether stdin and stdout are a terminal that can be drawn on.
pub(crate) fn is_screen() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb
}

/// Whether colours are unwanted: <https://no-color.org>, set and not empty.
pub(crate) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Prints text for people: on a terminal, lines that are too long are broken between words.
pub(crate) fn print_folded(text: &str) {
    print(&folded(text));
}

/// Text as it fits on the terminal; as it is where stdout is none.
pub(crate) fn folded(text: &str) -> String {
    match console::Term::stdout().size_checked() {
        Some((_, columns)) if columns > 0 && io::stdout().is_terminal() => {
            fold(text, usize::from(columns))
        }
        _ => text.to_owned(),
    }
}

/// Writes text to stdout. A reader that has gone ends the process, as it does everywhere in a pipe.
pub(crate) fn print(text: &str) {
    if let Err(error) = try_print(text) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            tell(&format!("error: cannot write to stdout: {error}"));
        }
        std::process::exit(i32::from(ERROR));
    }
}

/// Writes text to stdout, where what follows matters even if nobody reads it.
///
/// # Errors
/// What the system says.
pub(crate) fn try_print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Writes a line to stdout.
pub(crate) fn print_line(line: &str) {
    print(&format!("{line}\n"));
}

/// Writes an object to stdout, as one line.
pub(crate) fn print_json(object: &Value) {
    print_line(&object.to_string());
}

/// Writes a line to stderr, where there is one.
pub(crate) fn tell(line: &str) {
    // Nobody is left to hear about a stderr that is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Asks on stderr; the answer comes when a line has been typed. `None` at the end of input.
///
/// The reading thread cannot be stopped: it ends with the process or with the line.
pub(crate) fn ask(question: &str) -> oneshot::Receiver<Option<String>> {
    let (answer, receiver) = oneshot::channel();
    let _ = write!(io::stderr().lock(), "{question} ").and_then(|()| io::stderr().flush());
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        let text = matches!(read, Ok(length) if length > 0).then(|| line.trim().to_lowercase());
        // Nobody waits any more: the answer came too late.
        let _ = answer.send(text);
    });
    receiver
}

/// Asks a question that `y` or `yes` confirms; anything else does not.
pub(crate) async fn confirm(question: &str) -> bool {
    let answer = ask(&format!("{question} [y/N]")).await.ok().flatten();
    matches!(answer.as_deref(), Some("y" | "yes"))
}
