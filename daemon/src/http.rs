//! Serves `GET /healthz` and `GET /metrics` to supervisors. Request size, waiting time and the
//! number of clients are limited.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// The longest accepted request head.
const REQUEST_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Limits {
    /// For a client to send its request.
    head: Duration,
    /// For a client, from its connection to the end of the answer.
    client: Duration,
    /// For the process to report its health.
    health: Duration,
}

/// A request is one packet. Prometheus and supervisors wait ten seconds, or at least one. A busy
/// disk can delay a healthy process for a second or two.
const LIMITS: Limits = Limits {
    head: Duration::from_secs(1),
    client: Duration::from_secs(5),
    health: Duration::from_secs(3),
};

/// Concurrent clients. Another one replaces the oldest: idle clients must not lock out a
/// supervisor.
const CLIENTS_MAX: usize = 16;

/// Pause after a failed accept, which usually means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Content type of a scrape: `OpenMetrics` 1.0 text, which Prometheus requests.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A process that can be scraped.
pub trait Scrape: Send + Sync + 'static {
    /// Current metrics in the `OpenMetrics` text format; `None` during shutdown.
    fn scrape(&self) -> impl Future<Output = Option<String>> + Send;

    /// The health of the process. No answer in time counts as [`Health::Ill`].
    fn health(&self) -> impl Future<Output = Health> + Send {
        std::future::ready(Health::Well)
    }
}

/// The health of a process, for its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It works normally.
    Well,
    /// It was told to stop: it finishes its work and accepts no more.
    Stopping,
    /// It does not work.
    Ill,
}

impl Health {
    /// Status line and body.
    fn answer(self) -> (&'static str, &'static str) {
        match self {
            Self::Well => ("200 OK", "ok\n"),
            Self::Stopping => ("503 Service Unavailable", "stopping\n"),
            Self::Ill => ("503 Service Unavailable", "the process is not working\n"),
        }
    }
}

/// Binds the address of `--metrics`.
///
/// # Errors
/// If the address is not available.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on --metrics {address}; choose another address, or stop the process that uses it"))
}

/// Serves until `stop`.
pub async fn serve<S: Scrape>(listener: TcpListener, metrics: S, stop: CancellationToken) {
    serve_within(LIMITS, listener, metrics, stop).await;
}

async fn serve_within<S: Scrape>(
    limits: Limits,
    listener: TcpListener,
    metrics: S,
    stop: CancellationToken,
) {
    let metrics = Arc::new(metrics);
    let mut clients = JoinSet::new();
    let mut arrived: VecDeque<AbortHandle> = VecDeque::with_capacity(CLIENTS_MAX);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    arrived.retain(|client| !client.is_finished());
                    if arrived.len() >= CLIENTS_MAX
                        && let Some(oldest) = arrived.pop_front()
                    {
                        oldest.abort();
                    }
                    let answered = answer(stream, Arc::clone(&metrics), limits);
                    arrived.push_back(clients.spawn(async move {
                        let _ = tokio::time::timeout(limits.client, answered).await;
                    }));
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

/// Reads a request's head; `None` if there is none or it is too long.
async fn head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    let mut piece = [0; 512];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            Ok(read @ 1..) if head.len() + read <= REQUEST_MAX => {
                head.extend_from_slice(&piece[..read]);
            }
            Ok(_) | Err(_) => return None,
        }
    }
    Some(head)
}

/// Reads and answers one request. Cancelling closes the connection.
async fn answer<S: Scrape>(mut stream: TcpStream, metrics: Arc<S>, limits: Limits) {
    let Ok(Some(head)) = tokio::time::timeout(limits.head, head(&mut stream)).await else {
        return;
    };
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match route(&head) {
        Route::Health => {
            let health = tokio::time::timeout(limits.health, metrics.health()).await;
            let (status, text) = health.unwrap_or(Health::Ill).answer();
            (status, plain, text.to_owned())
        }
        Route::Metrics => match metrics.scrape().await {
            Some(text) => ("200 OK", METRICS_TYPE, text),
            None => ("503 Service Unavailable", plain, "stopping\n".to_owned()),
        },
        Route::Nowhere => {
            let text = "only /healthz and /metrics exist\n".to_owned();
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
    // The client may have gone.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

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
    let method = words.next();
    // Ignores the query string, which caches and scrapers may add.
    let path = words.next().and_then(|p| p.split(|b| *b == b'?').next());
    match (method, path) {
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
        assert_eq!(of("GET /metrics?x=y HTTP/1.1\r\n\r\n"), Route::Metrics);
        assert_eq!(of("GET /healthz? HTTP/1.1\r\n\r\n"), Route::Health);
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

    /// Serves with short limits. Returns the address and the task, which must be kept.
    async fn hurried<S: Scrape>(metrics: S) -> (SocketAddr, JoinSet<()>) {
        let limits = Limits {
            head: Duration::from_millis(100),
            client: Duration::from_millis(200),
            health: Duration::from_millis(50),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(serve_within(limits, listener, metrics, stop));
        (address, tasks)
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_no_supervisor_from_asking_and_are_hung_up_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, One, CancellationToken::new()));
        let mut silent = Vec::new();
        for _ in 0..4 * CLIENTS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Earlier than the silent clients time out: their places were taken.
        let asked = tokio::time::timeout(LIMITS.head, ask(address, "/healthz"));
        assert!(asked.await.unwrap().ends_with("ok\n"));
        for stream in &mut silent {
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        }
    }

    struct Never;

    impl Scrape for Never {
        async fn scrape(&self) -> Option<String> {
            std::future::pending().await
        }

        async fn health(&self) -> Health {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_process_that_hangs_is_not_healthy_and_its_scrapes_end() {
        let (address, _tasks) = hurried(Never).await;
        let answer = ask(address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(ask(address, "/metrics").await, "");
    }

    struct Going;

    impl Scrape for Going {
        async fn scrape(&self) -> Option<String> {
            None
        }

        async fn health(&self) -> Health {
            Health::Stopping
        }
    }

    #[tokio::test]
    async fn a_process_that_stops_says_so() {
        let (address, _tasks) = hurried(Going).await;
        let answer = ask(address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nstopping\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_question_is_hung_up_on() {
        let (address, _tasks) = hurried(One).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n")
            .await
            .unwrap();
        assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
    }
}
