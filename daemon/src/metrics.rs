//! Metrics of the process itself, and the text format of all metrics.
//!
//! The names are those of Prometheus' own client libraries. Values are read from `/proc` at each
//! scrape; between scrapes this costs nothing.

use std::{fmt, fs};

use prometheus_client::encoding::{EncodeCounterValue, EncodeGaugeValue};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use steep_protocol::quic::PeerStats;

pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding::DescriptorEncoder;
pub use prometheus_client::registry::Registry;

/// A registry with the metrics of the process.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics));
    registry
}

/// The registry in the `OpenMetrics` text format.
#[must_use]
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => text,
        // Writing into a string fails only if one of our own collectors does.
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            "# EOF\n".to_owned()
        }
    }
}

/// Memory, CPU, open files and threads of this process, as far as the system reports them.
#[derive(Debug)]
struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        if let Some(resident) = resident_bytes() {
            let help = "Resident memory of the process, in bytes";
            page.gauge("process_resident_memory_bytes", help, [([], resident)])?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            let open = u64::try_from(files.count()).unwrap_or(u64::MAX);
            page.gauge("process_open_fds", "Open file descriptors", [([], open)])?;
        }
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        let help = "User and system CPU time spent, in seconds";
        page.counter("process_cpu_seconds", help, [([], seconds)])
    }
}

/// The output of one scrape.
#[derive(Debug)]
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

/// One label of a value.
pub type Label<'a> = (&'static str, &'a str);

impl<'a> Page<'a> {
    /// A page written with that encoder.
    #[must_use]
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder }
    }

    /// Writes a gauge and its values; nothing if it has none.
    ///
    /// # Errors
    /// If the encoder fails, which one that writes into a string never does.
    pub fn gauge<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) -> fmt::Result {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let kind = MetricType::Gauge;
        let mut metric = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            if N == 0 {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// Writes a counter and its values; nothing if it has none. `_total` is appended to the name.
    ///
    /// # Errors
    /// As [`Page::gauge`].
    pub fn counter<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) -> fmt::Result {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let kind = MetricType::Counter;
        let mut metric = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            let none: Option<&Exemplar<[Label<'_>; 0], f64>> = None;
            if N == 0 {
                metric.encode_counter(&value, none)?;
            } else {
                metric
                    .encode_family(&labels)?
                    .encode_counter(&value, none)?;
            }
        }
        Ok(())
    }

    /// Writes statistics of QUIC connections with names that start with `prefix`; `by` is the label
    /// for the peer.
    ///
    /// # Errors
    /// As [`Page::gauge`].
    pub fn paths(&mut self, prefix: &str, by: &str, peers: &[PeerStats]) -> fmt::Result {
        self.gauge(
            &format!("{prefix}_quic_connections"),
            &format!("Connections now, {by}"),
            peers.iter().map(|p| (peer(p), p.connections)),
        )?;
        self.gauge(
            &format!("{prefix}_quic_rtt_seconds"),
            "Round trip, the longest of the peer's connections",
            peers
                .iter()
                .filter(|p| p.connections > 0)
                .map(|p| (peer(p), p.rtt.as_secs_f64())),
        )?;
        let mut sum = |name: &str, help: &str, value: fn(&PeerStats) -> u64| {
            let values = peers.iter().map(|p| (peer(p), value(p)));
            self.counter(&format!("{prefix}_quic_{name}"), help, values)
        };
        sum("sent_packets", "Packets sent", |p| p.sent_packets)?;
        sum("lost_packets", "Packets sent and considered lost", |p| {
            p.lost_packets
        })?;
        sum("sent_bytes", "UDP payload sent", |p| p.sent)?;
        sum("received_bytes", "UDP payload received", |p| p.received)
    }
}

fn peer(stats: &PeerStats) -> [Label<'_>; 1] {
    [("peer", &stats.peer)]
}

/// proc(5): the second field of `statm` is the resident set, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_its_memory_and_time() {
        let text = text(&registry());
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {text}"))
                .trim()
                .parse()
                .unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") > 2.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
