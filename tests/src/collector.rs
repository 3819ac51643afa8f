//! A trace collector that stores requests without decoding them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// A request that has begun arrives within this time.
const LIMIT: Duration = Duration::from_secs(10);

/// More than any batch of spans.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// A collector; stops when dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Kept>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Kept {
    stop: AtomicBool,
    bodies: Mutex<Vec<Vec<u8>>>,
    refused: Mutex<Vec<String>>,
}

impl Collector {
    /// Starts a collector on its own port.
    ///
    /// # Errors
    /// No port is free.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let kept = Arc::new(Kept::default());
        let keeper = Arc::clone(&kept);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if keeper.stop.load(Ordering::SeqCst) {
                    return;
                }
                let outcome = stream.context("accept").and_then(|s| answer(&s));
                match outcome {
                    Ok(body) => lock(&keeper.bodies).push(body),
                    Err(error) => lock(&keeper.refused).push(format!("{error:#}")),
                }
            }
        });
        Ok(Self {
            address,
            kept,
            thread: Some(thread),
        })
    }

    /// The value for `--otlp-endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bodies of all requests, in order.
    ///
    /// # Errors
    /// Something else than a request with traces arrived.
    pub fn bodies(&self) -> Result<Vec<Vec<u8>>> {
        let refused = lock(&self.kept.refused).clone();
        ensure!(refused.is_empty(), "{refused:?}");
        Ok(lock(&self.kept.bodies).clone())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kept.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads one request and closes the connection.
fn answer(mut stream: &TcpStream) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "it went away: {head:?}");
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let wanted = [
        "post /v1/traces http/1.1",
        "content-type: application/x-protobuf",
    ];
    for line in wanted {
        ensure!(head.iter().any(|l| l == line), "no {line} in {head:?}");
    }
    let length = head.iter().find_map(|l| l.strip_prefix("content-length: "));
    let length: usize = length.context("a length")?.parse()?;
    ensure!(length <= BODY_MAX, "{length} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    Ok(body)
}
