use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::*;

#[test]
fn an_endpoint_is_plain_http_and_holds_nothing_else() {
    let url = |text: &str| Endpoint::parse(text).unwrap().0;
    for text in [
        "http://h:4318",
        "http://h:4318/",
        "http://h:4318/v1/traces",
        "http://h:4318/v1/traces/",
    ] {
        assert_eq!(url(text), "http://h:4318/v1/traces", "{text}");
    }
    assert_eq!(url("http://[::1]:1/up"), "http://[::1]:1/up/v1/traces");
    let why = |text: &str| Endpoint::parse(text).unwrap_err();
    assert!(why("https://h:4318").contains("https is not spoken"));
    for text in ["h:4318", "", "http://", "ftp://h", "grpc://h:4317", "/x"] {
        assert!(why(text).contains("http://HOST:4318"), "{text}");
    }
    let with_user = why("http://me:hunter2@h:4318");
    assert!(!with_user.contains("hunter2"), "{with_user}");
    let with_query = why("http://h:4318/?token=hunter2");
    assert!(!with_query.contains("hunter2"), "{with_query}");
}

#[test]
fn without_an_endpoint_no_span_is_made() {
    let mut span = Span::begin("x", Side::Within, || panic!("asked where it belongs"));
    span.number("n", 1);
    span.good("done");
    assert!(span.0.is_none());
}

fn open(outcome: Option<Outcome>) -> Open {
    let place = Place {
        trace: 0x0af7,
        span: Some(7),
        parent: Some(3),
    };
    let mut open = Span::open("part", Side::Asks, place);
    open.number("rows", u64::MAX);
    open.text("table", "public.t");
    let mut open = open.0.take().unwrap();
    open.outcome = outcome;
    *open
}

#[test]
fn a_span_is_what_was_said_of_it() {
    let scope = InstrumentationScope::builder("test").build();
    let failed = data(open(Some(Outcome::Bad("timeout"))), &scope);
    let context = &failed.span_context;
    assert_eq!(context.trace_id(), TraceId::from(0x0af7));
    assert_eq!(context.span_id(), SpanId::from(7));
    assert_eq!(failed.parent_span_id, SpanId::from(3));
    assert_eq!(failed.span_kind, SpanKind::Client);
    assert_eq!(failed.status, Status::error("timeout"));
    assert!(failed.end_time >= failed.start_time);
    for (name, value) in [
        ("rows", Value::I64(i64::MAX)),
        ("table", "public.t".into()),
        ("outcome", "timeout".into()),
    ] {
        assert!(failed.attributes.contains(&KeyValue::new(name, value)));
    }
    let left = data(open(None), &scope);
    assert_eq!(left.status, Status::Unset);
    assert!(
        left.attributes
            .contains(&KeyValue::new("outcome", "cancelled"))
    );
}

fn traces(endpoint: &str) -> Traces {
    Traces::to("test", &Endpoint::parse(endpoint).unwrap()).unwrap()
}

#[test]
fn spans_go_to_the_collector_in_one_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let traces = traces(&format!("http://{}", listener.local_addr().unwrap()));
    for _ in 0..100 {
        traces.send(open(None));
    }
    let collector = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap();
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).unwrap();
        (head, body)
    });
    traces.flush();
    let (head, body) = collector.join().unwrap();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    let spans = body.windows(8).filter(|w| *w == b"public.t").count();
    assert_eq!(spans, 100);
    assert_eq!(traces.lost(), 0);
}

#[test]
fn without_a_collector_spans_are_counted_and_nobody_waits() {
    // Never accepts: connections stay in the kernel's queue, and no answer comes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let traces = traces(&format!("http://{}", listener.local_addr().unwrap()));
    let began = std::time::Instant::now();
    let many = 3 * QUEUE as u64;
    for _ in 0..many {
        traces.send(open(None));
    }
    let made = began.elapsed();
    assert!(made < REQUEST_LIMIT, "{made:?}");
    let refused = traces.counts.lost.load(Ordering::Relaxed);
    assert!(
        refused >= many - QUEUE as u64 - 2 * BATCH as u64,
        "{refused}"
    );
    assert!(traces.counts.said.load(Ordering::Relaxed));
    traces.flush();
    assert!(began.elapsed() < made + FLUSH_LIMIT + Duration::from_secs(1));
    assert_eq!(traces.lost(), many);
}
