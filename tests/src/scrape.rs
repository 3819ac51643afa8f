//! Metrics as a scraper reads them: the endpoint's answer, and its `OpenMetrics` text.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// An endpoint answers well within this time.
const LIMIT: Duration = Duration::from_secs(10);

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name, with `_total` for a counter.
    pub name: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// The result of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Types by the metric's name, as the text declares them.
    pub types: BTreeMap<String, String>,
    /// Values in the order served.
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// The only value with that name and those labels.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matches = |sample: &&Sample| {
            let has = |(label, value): &(&str, &str)| {
                sample.labels.get(*label).is_some_and(|v| v == value)
            };
            sample.name == name && labels.iter().all(has)
        };
        self.samples.iter().find(matches).map(|s| s.value)
    }
}

/// `GET path` from `address`: status line and body.
///
/// # Errors
/// Nobody answers.
pub fn get(address: &str, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("nobody at {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let status = head.lines().next().unwrap_or_default().to_owned();
    Ok((status, body.to_owned()))
}

/// Scrapes an endpoint.
///
/// # Errors
/// It does not answer, or in another format.
pub fn scrape(address: &str) -> Result<Scrape> {
    let (status, body) = get(address, "/metrics")?;
    if !status.contains(" 200 ") {
        bail!("{address}/metrics: {status}");
    }
    parse(&body)
}

fn parse(text: &str) -> Result<Scrape> {
    if !text.ends_with("# EOF\n") {
        bail!("the text does not end with # EOF");
    }
    let mut scrape = Scrape::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context(line.to_owned())?;
            let before = scrape.types.insert(name.to_owned(), kind.to_owned());
            anyhow::ensure!(before.is_none(), "{name} is declared twice");
        } else if !line.starts_with('#') {
            scrape.samples.push(sample(line).context(line.to_owned())?);
        }
    }
    Ok(scrape)
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    // Our label values contain neither commas nor quotes.
    let labels = labels.split(',').filter(|l| !l.is_empty()).map(|label| {
        let (name, value) = label.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('"').to_owned()))
    });
    Some(Sample {
        name: name.to_owned(),
        labels: labels.collect::<Option<_>>()?,
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_labels() {
        let text = "# HELP a b.\n# TYPE a gauge\na{x=\"y\",z=\"1\"} 2.5\nb_total 3\n# EOF\n";
        let scrape = parse(text).unwrap();
        assert_eq!(scrape.value("a", &[("x", "y")]), Some(2.5));
        assert_eq!(scrape.value("a", &[("x", "n")]), None);
        assert_eq!(scrape.value("b_total", &[]), Some(3.0));
        assert_eq!(scrape.types["a"], "gauge");
        assert!(parse("a 1\n").is_err());
    }
}
