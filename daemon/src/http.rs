//! `GET /healthz` and `GET /metrics`, and nothing else, for whoever supervises the process. Reads
//! little, waits little, serves few at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
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

/// What a scrape is answered with: `OpenMetrics` 1.0 text, which Prometheus asks for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Something that can be scraped.
pub trait Scrape: Send + Sync + 'static {
    /// Every metric as it is now, in the `OpenMetrics` text format. `None` where the process is on
    /// its way down.
    fn scrape(&self) -> impl Future<Output = Option<String>> + Send;
}

/// Takes the address of `--metrics`.
///
/// # Errors
/// Where it cannot be had.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on --metrics {address}"))
}

/// Answers until `stop`.
pub async fn serve<S: Scrape>(listener: TcpListener, metrics: S, stop: CancellationToken) {
    let metrics = Arc::new(metrics);
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    let answered = answer(stream, Arc::clone(&metrics));
                    clients.spawn(tokio::time::timeout(CLIENT_LIMIT, answered));
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
async fn answer<S: Scrape>(mut stream: TcpStream, metrics: Arc<S>) {
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
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match route(&head) {
        Route::Health => ("200 OK", plain, "ok\n".to_owned()),
        Route::Metrics => match metrics.scrape().await {
            Some(text) => ("200 OK", METRICS_TYPE, text),
            None => ("503 Service Unavailable", plain, "stopping\n".to_owned()),
        },
        Route::Nowhere => {
            let text = "only /healthz and /metrics are here\n".to_owned();
            ("404 Not Found", plain, text)
        }
        Route::NotGet => {
            let text = "only GET is answered\n".to_owned();
            ("405 Method Not Allowed", plain, text)
        }
    };
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    // A client that has gone needs no answer.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Health,
    Metrics,
    Nowhere,
    NotGet,
}

fn route(head: &[u8]) -> Route {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/healthz")) => Route::Health,
        (Some(b"GET"), Some(b"/metrics")) => Route::Metrics,
        (Some(b"GET"), _) => Route::Nowhere,
        _ => Route::NotGet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_health_and_metrics_are_answered_and_only_to_get() {
        let of = |head: &str| route(head.as_bytes());
        assert_eq!(of("GET /healthz HTTP/1.1\r\n\r\n"), Route::Health);
        assert_eq!(of("GET /metrics HTTP/1.1\r\n\r\n"), Route::Metrics);
        assert_eq!(of("GET / HTTP/1.1\r\n\r\n"), Route::Nowhere);
        assert_eq!(of("GET /healthzz HTTP/1.1\r\n\r\n"), Route::Nowhere);
        assert_eq!(of("POST /metrics HTTP/1.1\r\n\r\n"), Route::NotGet);
        assert_eq!(of("\r\n\r\n"), Route::NotGet);
    }

    struct One;

    impl Scrape for One {
        async fn scrape(&self) -> Option<String> {
            Some("one 1\n# EOF\n".to_owned())
        }
    }

    #[tokio::test]
    async fn a_request_is_answered_and_an_endless_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, One, stop.clone()));
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
        let answer = ask(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(
            answer.contains("openmetrics-text") && answer.ends_with("one 1\n# EOF\n"),
            "{answer}"
        );
        assert_eq!(ask(&[b'x'; 2 * REQUEST_MAX]).await, "");
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
