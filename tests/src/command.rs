//! Runs a command to its end; errors include its output.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Bytes of a failed command's output in an error, from its end.
const SHOWN: usize = 4_000;

/// Runs `command` and returns its standard output.
///
/// # Errors
/// It cannot be run or fails, with the end of its output.
pub fn output(command: &mut Command) -> Result<String> {
    output_of(command, None)
}

/// [`output`] with text on standard input.
///
/// # Errors
/// As [`output`].
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    output_of(command, Some(input))
}

fn output_of(command: &mut Command, input: Option<&str>) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let pipe = child.stdin.take();
    let output = std::thread::scope(|scope| {
        if let (Some(mut pipe), Some(input)) = (pipe, input) {
            // A command that fails early does not read its input; its own error says why.
            scope.spawn(move || drop(pipe.write_all(input.as_bytes())));
        }
        child.wait_with_output()
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{name} failed ({}):\n{}{}",
            output.status,
            end(&stdout),
            end(&stderr)
        );
    }
    Ok(stdout)
}

/// The last [`SHOWN`] bytes, starting at a character.
fn end(text: &str) -> &str {
    let mut from = text.len().saturating_sub(SHOWN);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_what_was_printed() {
        let error = output(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("why") && error.contains("out") && error.contains('3'),
            "{error}"
        );
    }

    #[test]
    fn input_larger_than_a_pipe_does_not_block() {
        let input = "x".repeat(1 << 20);
        let count = output_with_input(Command::new("wc").arg("-c"), &input).unwrap();
        assert_eq!(count.trim(), "1048576");
        assert!(output_with_input(Command::new("true").arg("-"), &input).is_ok());
    }
}
