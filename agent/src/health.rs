//! `GET /healthz`, for whoever supervises the process. Answers nothing else and reads little.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The longest request read.
const REQUEST_MAX: usize = 4096;

/// How long a client gets to ask.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients at once; more wait in the kernel's queue.
const CLIENTS_MAX: usize = 16;

/// Takes the address.
///
/// # Errors
/// Where it cannot be had.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("--metrics {address}"))
}

/// Answers until cancelled.
pub async fn serve(listener: TcpListener, cancel: CancellationToken) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => {
                if let Ok((stream, _)) = accepted {
                    clients.spawn(tokio::time::timeout(REQUEST_TIMEOUT, answer(stream)));
                }
            }
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream) {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() >= REQUEST_MAX || !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
            return;
        }
    }
    let (status, body) = if request.starts_with(b"GET /healthz ") {
        ("200 OK", "ok\n")
    } else {
        ("404 Not Found", "only /healthz is here\n")
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}
