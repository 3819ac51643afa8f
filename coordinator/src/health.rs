//! `GET /healthz` and nothing else, for whoever supervises the process. Reads little, waits little,
//! serves few at once.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The longest request head read.
const REQUEST_MAX: usize = 4_096;

/// How long a client gets to ask and to take its answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);

/// Clients at once; more wait in the kernel's queue.
const CLIENTS_MAX: usize = 16;

/// Pause after an accept that failed, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until `shutdown`.
pub(crate) async fn serve(listener: TcpListener, shutdown: CancellationToken) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(tokio::time::timeout(CLIENT_LIMIT, answer(stream)));
                }
                Err(error) => {
                    tracing::debug!(%error, "a health check could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

/// Reads one request head and answers it. Cancelling drops the connection.
async fn answer(mut stream: TcpStream) {
    let mut head = Vec::with_capacity(512);
    let mut piece = [0; 512];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            Ok(read @ 1..) if head.len() + read <= REQUEST_MAX => {
                head.extend_from_slice(&piece[..read]);
            }
            Ok(_) | Err(_) => return,
        }
    }
    let (status, body) = respond(&head);
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    // A client that has gone needs no answer.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Status and body for a request head.
fn respond(head: &[u8]) -> (&'static str, &'static str) {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/healthz")) => ("200 OK", "ok\n"),
        (Some(b"GET"), _) => ("404 Not Found", "only /healthz is here\n"),
        _ => ("405 Method Not Allowed", "only GET is answered\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_health_is_answered_and_only_to_get() {
        let status = |head: &str| respond(head.as_bytes()).0;
        assert_eq!(status("GET /healthz HTTP/1.1\r\n\r\n"), "200 OK");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "404 Not Found");
        assert_eq!(status("GET /healthzz HTTP/1.1\r\n\r\n"), "404 Not Found");
        assert_eq!(
            status("POST /healthz HTTP/1.1\r\n\r\n"),
            "405 Method Not Allowed"
        );
        assert_eq!(status("\r\n\r\n"), "405 Method Not Allowed");
    }

    #[tokio::test]
    async fn a_request_is_answered_and_an_endless_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, shutdown.clone()));
        let ask = async |bytes: &[u8]| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        let answer = ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok\n"),
            "{answer}"
        );
        assert_eq!(ask(&[b'x'; 2 * REQUEST_MAX]).await, "");
        shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
