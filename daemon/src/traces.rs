//! Spans, exported to an OpenTelemetry collector over OTLP/HTTP (`--otlp-endpoint`).
//!
//! Without a collector, a span is `None`. Otherwise finished spans go through a bounded queue to a
//! thread; nobody waits for the collector. Lost spans are counted and logged once. There is one
//! exporter per process, like the log. The caller chooses the ids, which are known before a span
//! starts, so that processes agree on them without a message. Attributes hold no row, password or
//! server address.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, SpanData,
    SpanEvents, SpanExporter, SpanLinks, SpanProcessor as _,
};

/// The setting's name.
pub(crate) const SETTING: &str = "otlp-endpoint";

/// The path below the endpoint (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";

/// Finished spans waiting to be sent, about half a kilobyte each.
const QUEUE: usize = 8_192;

/// Spans in one request.
const BATCH: usize = 512;

/// How long spans wait for others.
const DELAY: Duration = Duration::from_secs(1);

/// The time limit of a request, including retries.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);

/// How long the process waits for the last spans when it stops.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The longest answer read; that of a successful request is empty.
const ANSWER_MAX: u64 = 64 * 1_024;

static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    queue: BatchSpanProcessor,
    counts: Arc<Counts>,
    scope: InstrumentationScope,
}

#[derive(Debug, Default)]
struct Counts {
    finished: AtomicU64,
    /// Accepted or rejected by the collector, or undeliverable.
    settled: AtomicU64,
    lost: AtomicU64,
    /// Whether a loss has been logged.
    said: AtomicBool,
}

impl Counts {
    fn lose(&self, spans: u64, why: &dyn fmt::Display) {
        self.lost.fetch_add(spans, Ordering::Relaxed);
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %why, "spans are lost; logged once, jobs go on");
        }
    }
}

/// A collector's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// Parses `http://HOST:PORT`, optionally with a path in front of `/v1/traces`.
    ///
    /// # Errors
    /// What is wrong with it; a password is never repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(why.to_owned());
        let Ok(uri) = text.parse::<ureq::http::Uri>() else {
            return bad("it is no URL: use http://HOST:4318");
        };
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return bad(
                    "https is not spoken here: name a collector on this machine or network by \
                     http, and let it go on over TLS",
                );
            }
            _ => return bad("it has to begin with http://, as http://HOST:4318"),
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return bad("it contains a user name: set OTEL_EXPORTER_OTLP_HEADERS instead");
        }
        if uri.query().is_some() {
            return bad("it holds a query: use http://HOST:4318");
        }
        let base = text.trim_end_matches('/');
        let base = base.strip_suffix(PATH).unwrap_or(base);
        Ok(Self(format!("{base}{PATH}")))
    }
}

/// Starts exporting; call it once.
///
/// # Errors
/// If the OTLP settings of the environment are invalid.
pub(crate) fn start(service: &'static str, endpoint: &Endpoint) -> anyhow::Result<()> {
    // A second start has no effect.
    let _ = TRACES.set(Traces::to(service, endpoint)?);
    tracing::info!(endpoint = endpoint.0, "exporting traces");
    Ok(())
}

/// Sends the rest within [`FLUSH_LIMIT`] and logs how many spans were lost. Blocks.
pub(crate) fn stop() {
    let Some(traces) = TRACES.get() else {
        return;
    };
    traces.flush();
    let lost = traces.lost();
    if lost > 0 {
        let finished = traces.counts.finished.load(Ordering::Relaxed);
        tracing::warn!(lost, finished, "spans did not reach the collector");
    }
}

/// The ids of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The trace id. Not 0.
    pub trace: u128,
    /// Its own id, if others must know it; otherwise random.
    pub span: Option<u64>,
    /// The parent span, if any.
    pub parent: Option<u64>,
}

/// The side of a request between processes that a span is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Neither.
    Within,
    /// The client.
    Asks,
    /// The server.
    Answers,
}

/// An operation in progress. Sent when it is dropped; without an outcome, its outcome is
/// `cancelled`.
#[derive(Debug)]
#[must_use = "a span lasts until it is dropped"]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    name: &'static str,
    place: Place,
    side: Side,
    began: SystemTime,
    ended: Option<SystemTime>,
    outcome: Option<Outcome>,
    attributes: Vec<KeyValue>,
}

#[derive(Debug)]
enum Outcome {
    Good(&'static str),
    Bad(&'static str),
}

impl Span {
    /// Starts a span. Without a collector it is `None`, and `place` is not called.
    pub fn begin(name: &'static str, side: Side, place: impl FnOnce() -> Place) -> Self {
        if TRACES.get().is_none() {
            return Self(None);
        }
        Self::open(name, side, place())
    }

    fn open(name: &'static str, side: Side, place: Place) -> Self {
        Self(Some(Box::new(Open {
            name,
            place,
            side,
            began: SystemTime::now(),
            ended: None,
            outcome: None,
            attributes: Vec::with_capacity(10),
        })))
    }

    /// Sets its start and end, instead of the times when it was created and dropped.
    pub fn lasted(mut self, began: SystemTime, ended: SystemTime) -> Self {
        if let Some(open) = &mut self.0 {
            open.began = began;
            open.ended = Some(ended);
        }
        self
    }

    /// Sets a numeric attribute; the last value counts.
    pub fn number(&mut self, name: &'static str, number: u64) {
        // OTLP's integers are signed.
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.set(name, || number.into());
    }

    /// Sets a text attribute; not formatted without a collector.
    pub fn text(&mut self, name: &'static str, text: impl fmt::Display) {
        self.set(name, || text.to_string().into());
    }

    fn set(&mut self, name: &'static str, value: impl FnOnce() -> Value) {
        if let Some(open) = &mut self.0 {
            open.attributes.retain(|known| known.key.as_str() != name);
            open.attributes.push(KeyValue::new(name, value()));
        }
    }

    /// Sets a successful outcome.
    pub fn good(&mut self, outcome: &'static str) {
        if let Some(open) = &mut self.0 {
            open.outcome = Some(Outcome::Good(outcome));
        }
    }

    /// Sets a failed outcome.
    pub fn bad(&mut self, outcome: &'static str) {
        if let Some(open) = &mut self.0 {
            open.outcome = Some(Outcome::Bad(outcome));
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(open), Some(traces)) = (self.0.take(), TRACES.get()) {
            traces.send(*open);
        }
    }
}

impl Traces {
    fn to(service: &'static str, endpoint: &Endpoint) -> anyhow::Result<Self> {
        let exporter = Otlp::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_endpoint(&endpoint.0)
            .with_timeout(REQUEST_LIMIT)
            .build()
            .with_context(|| format!("--{SETTING} {}", endpoint.0))?;
        let counts = Arc::new(Counts::default());
        let exporter = Counted {
            inner: exporter,
            counts: Arc::clone(&counts),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let mut queue = BatchSpanProcessor::new(exporter, config);
        let version = env!("CARGO_PKG_VERSION");
        queue.set_resource(
            &Resource::builder()
                .with_service_name(service)
                .with_attribute(KeyValue::new("service.version", version))
                .build(),
        );
        let scope = InstrumentationScope::builder(service)
            .with_version(version)
            .build();
        Ok(Self {
            queue,
            counts,
            scope,
        })
    }

    /// Sends the rest, for [`FLUSH_LIMIT`] at most, then closes the queue.
    fn flush(&self) {
        // The counters include spans that could not be sent in time.
        let _ = self.queue.shutdown_with_timeout(FLUSH_LIMIT);
    }

    /// Spans that have not reached the collector, including those in flight.
    fn lost(&self) -> u64 {
        let counts = &self.counts;
        let lost = counts.lost.load(Ordering::Relaxed);
        let settled = counts.settled.load(Ordering::Relaxed);
        let finished = counts.finished.load(Ordering::Relaxed);
        lost + finished.saturating_sub(settled)
    }

    fn send(&self, open: Open) {
        let counts = &self.counts;
        let finished = counts.finished.fetch_add(1, Ordering::Relaxed) + 1;
        let settled = counts.settled.load(Ordering::Relaxed);
        if finished.saturating_sub(settled) > QUEUE as u64 {
            counts.settled.fetch_add(1, Ordering::Relaxed);
            counts.lose(1, &"the collector takes them too slowly");
            return;
        }
        self.queue.on_end(data(open, &self.scope));
    }
}

/// The span in the exporter's format.
fn data(open: Open, scope: &InstrumentationScope) -> SpanData {
    let (word, status) = match open.outcome {
        Some(Outcome::Good(word)) => (word, Status::Ok),
        Some(Outcome::Bad(word)) => (word, Status::error(word)),
        None => ("cancelled", Status::Unset),
    };
    let mut attributes = open.attributes;
    attributes.push(KeyValue::new("outcome", word));
    let span = open
        .place
        .span
        .map_or_else(|| RandomIdGenerator::default().new_span_id(), SpanId::from);
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(open.place.trace),
            span,
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: open.place.parent.map_or(SpanId::INVALID, SpanId::from),
        parent_span_is_remote: open.place.parent.is_some(),
        span_kind: match open.side {
            Side::Within => SpanKind::Internal,
            Side::Asks => SpanKind::Client,
            Side::Answers => SpanKind::Server,
        },
        name: open.name.into(),
        start_time: open.began,
        end_time: open.ended.unwrap_or_else(SystemTime::now).max(open.began),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

/// An exporter that counts lost spans.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    counts: Arc<Counts>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let outcome = self.inner.export(batch).await;
        self.counts.settled.fetch_add(spans, Ordering::Relaxed);
        if let Err(error) = &outcome {
            self.counts.lose(spans, error);
        }
        outcome
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// HTTP without TLS, on the exporter's own thread, which may block.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST_LIMIT))
            // The collector is nearby; a proxy for the internet does not apply.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Self(config.into())
    }

    fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let mut answer = self.0.run(Request::from_parts(head, body.as_ref()))?;
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_MAX)
            .read_to_vec()?;
        Ok(answer.map(|_| text.into()))
    }
}

impl HttpClient for Client {
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.post(request) })
    }
}

#[cfg(test)]
mod tests;
