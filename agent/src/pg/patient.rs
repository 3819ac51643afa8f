//! A socket for a thread that may block, which waits for large reads.
//!
//! PostgreSQL sends COPY data 8 KiB at a time. Waking for each costs several times what handling the bytes
//! costs, and an event loop wakes even while nobody reads. A thread of its own can sleep instead, for less
//! time than the server takes to fill the socket, and then read a hundred kilobytes at once. No event loop
//! knows this socket. It blocks whoever polls it for [`LONGEST_WAIT`] at most, after which other branches
//! of the task run.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long one poll blocks, and so how late a cancellation may be noticed.
const LONGEST_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What PostgreSQL sends at once in the middle of a COPY; a smaller read is the end of an answer
/// (`PQ_SEND_BUFFER_SIZE` of `pqcomm.c`).
const SENT_AT_ONCE: usize = 8 * 1024;

/// About half of what a Unix socket holds before its sender waits.
const GOOD_READ: u32 = 96 * 1024;

/// The shortest and the longest sleep.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));

/// Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Patient {
    socket: OwnedFd,
    last_read: Instant,
    found: usize,
}

impl Patient {
    /// `socket` must not block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            last_read: Instant::now(),
            found: 0,
        }
    }

    /// Reads until the buffer is full or nothing more is expected soon. 0 at the end;
    /// [`io::ErrorKind::WouldBlock`] after a long silence.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match rustix::io::read(&self.socket, &mut into[filled..]) {
                Ok(count) => {
                    filled += count;
                    let since = self.last_read.elapsed();
                    self.last_read += since;
                    self.found = count;
                    if filled == into.len() || count < SENT_AT_ONCE {
                        return Ok(filled);
                    }
                    std::thread::sleep(pause(count, since));
                }
                Err(Errno::INTR) => {}
                // The next read meets the same error again.
                Err(_) if filled > 0 => return Ok(filled),
                Err(error @ Errno::WOULDBLOCK) => {
                    // A small buffer was emptied in the middle of a COPY.
                    if self.found >= SENT_AT_ONCE {
                        self.found = 0;
                        std::thread::sleep(PAUSES.0);
                    } else if !wait(&self.socket)? {
                        return Err(error.into());
                    } else {
                        self.last_read = Instant::now();
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut().fill(into.initialize_unfilled()) {
            Ok(count) => {
                into.advance(count);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    // Only queries go out, so there is nearly always room.
                    std::thread::sleep(PAUSES.1);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                written => return Poll::Ready(written.map_err(io::Error::from)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.socket, Shutdown::Write).map_err(io::Error::from))
    }
}

/// How long a sender of `count` bytes in `took` needs for a good read.
fn pause(count: usize, took: Duration) -> Duration {
    let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
    let wanted = took.saturating_mul(GOOD_READ) / count;
    wanted.clamp(PAUSES.0, PAUSES.1)
}

/// Whether there is something to read, or the end, within [`LONGEST_WAIT`].
fn wait(socket: &OwnedFd) -> io::Result<bool> {
    match poll(
        &mut [PollFd::new(socket, PollFlags::IN)],
        Some(&LONGEST_WAIT),
    ) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    fn pair() -> (Patient, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Patient::new(ours.into()), theirs)
    }

    #[tokio::test]
    async fn what_comes_arrives_whole_and_in_order_and_then_the_end() {
        for buffer in [4_096, 256 * 1024] {
            let (mut patient, mut theirs) = pair();
            let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7 % 251) as u8).collect();
            let writing = std::thread::spawn({
                let sent = sent.clone();
                move || {
                    for piece in sent.chunks(SENT_AT_ONCE) {
                        theirs.write_all(piece).unwrap();
                    }
                }
            });
            let mut got = Vec::new();
            let mut piece = vec![0; buffer];
            loop {
                match patient.read(&mut piece).await.unwrap() {
                    0 => break,
                    count => got.extend_from_slice(&piece[..count]),
                }
            }
            assert!(got == sent, "{} of {} bytes came", got.len(), sent.len());
            writing.join().unwrap();
        }
    }

    #[tokio::test]
    async fn an_answer_is_not_kept_back_until_more_comes() {
        let (mut patient, mut theirs) = pair();
        for length in [1, SENT_AT_ONCE - 1, SENT_AT_ONCE, SENT_AT_ONCE + 1] {
            theirs.write_all(&vec![7; length]).unwrap();
            let mut got = vec![0; length + 1];
            assert_eq!(patient.read(&mut got).await.unwrap(), length);
        }
    }

    #[tokio::test]
    async fn what_is_written_arrives_however_slowly_it_is_taken() {
        let (mut patient, mut theirs) = pair();
        let sent = vec![3; 2_000_000];
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).unwrap();
            got
        });
        patient.write_all(&sent).await.unwrap();
        patient.shutdown().await.unwrap();
        assert!(reading.join().unwrap() == sent);
    }

    #[tokio::test]
    async fn who_waits_for_a_silent_server_can_be_cancelled() {
        let (mut patient, _theirs) = pair();
        let cancel = CancellationToken::new();
        let cancelling = std::thread::spawn({
            let cancel = cancel.clone();
            move || cancel.cancel()
        });
        tokio::select! {
            read = patient.read_u8() => panic!("nobody has sent {read:?}"),
            () = cancel.cancelled() => {}
        }
        cancelling.join().unwrap();
    }

    #[test]
    fn a_pause_is_as_long_as_a_good_read_takes_within_bounds() {
        let micros = Duration::from_micros;
        assert_eq!(pause(48 * 1024, micros(200)), micros(400));
        assert_eq!(pause(usize::MAX, micros(200)), PAUSES.0);
        assert_eq!(pause(8 * 1024, Duration::from_secs(3)), PAUSES.1);
        assert_eq!(pause(0, Duration::MAX), PAUSES.1);
    }
}
