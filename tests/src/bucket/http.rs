//! As much of HTTP as tests need: one request on each connection.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// Nobody in a test waits longer for the other side.
const LIMIT: Duration = Duration::from_secs(60);

/// The longest head, and the longest body: an upload's piece has 8 MiB.
const HEAD_MAX: u64 = 64 * 1024;
const BODY_MAX: usize = 32 * 1024 * 1024;

/// A request or an answer: its first line, its other lines, its body.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) first: String,
    pub(super) headers: Vec<String>,
    pub(super) body: Vec<u8>,
}

impl Message {
    pub(super) fn request(method: &str, target: &str, body: &[u8]) -> Self {
        Self {
            first: format!("{method} {target} HTTP/1.1"),
            headers: vec![
                "Host: 127.0.0.1".to_owned(),
                format!("Content-Length: {}", body.len()),
            ],
            body: body.to_vec(),
        }
    }

    pub(super) fn answer(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>Made by the test.</Message></Error>"
        );
        Self {
            first: format!("HTTP/1.1 {status} {code}"),
            headers: vec![
                "Content-Type: application/xml".to_owned(),
                format!("Content-Length: {}", body.len()),
            ],
            body: body.into_bytes(),
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The n-th word of the first line.
    pub(super) fn word(&self, n: usize) -> &str {
        self.first.split(' ').nth(n).unwrap_or_default()
    }

    /// As it is sent, and as the last on its connection.
    pub(super) fn to_bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let mut head = format!("{}\r\nConnection: close\r\n", self.first);
        for line in &self.headers {
            if !line.to_ascii_lowercase().starts_with("connection:") {
                head.push_str(line);
                head.push_str("\r\n");
            }
        }
        head.push_str("\r\n");
        (head.into_bytes(), self.body.clone())
    }
}

/// Reads a request; `None` where the connection ends before one.
pub(super) fn read_request(stream: &TcpStream) -> Result<Option<Message>> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream);
    let Some(mut request) = read_head(&mut reader)? else {
        return Ok(None);
    };
    let length: usize = match request.header("content-length") {
        Some(length) => length.parse()?,
        None => 0,
    };
    ensure!(length <= BODY_MAX, "a request of {length} bytes");
    request.body = vec![0; length];
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// Sends a request and reads the answer to its end.
pub(super) fn exchange(address: &str, request: &Message) -> Result<Message> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let (head, body) = request.to_bytes();
    (&stream).write_all(&head)?;
    (&stream).write_all(&body)?;
    let mut reader = BufReader::new(&stream);
    let mut answer = read_head(&mut reader)?.context("no answer")?;
    reader.read_to_end(&mut answer.body)?;
    Ok(answer)
}

fn read_head(reader: &mut impl BufRead) -> Result<Option<Message>> {
    let mut lines = Vec::new();
    let mut head = reader.take(HEAD_MAX);
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            match lines.is_empty() {
                true => return Ok(None),
                false => bail!("a head without an end"),
            }
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let first = lines.first().context("a first line")?.clone();
    Ok(Some(Message {
        first,
        headers: lines.split_off(1),
        body: Vec::new(),
    }))
}
