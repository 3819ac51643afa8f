//! Transport settings, each number with its reason.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::wire::limits::STREAM_WINDOW;

/// Receive window of a connection that carries rows: 16 workers with a full stream window each, and
/// some.
const ROWS_WINDOW: u32 = 24 * 1024 * 1024;

/// Receive window where only requests arrive: 128 of the longest.
const REQUESTS_WINDOW: u32 = 512 * 1024;

/// Receive window for messages: the longest takes some round trips.
const MESSAGES_WINDOW: u32 = 2 * 1024 * 1024;

/// Send buffer for rows: as much as the receive window of the other end.
const ROWS_SEND_WINDOW: u64 = ROWS_WINDOW as u64;

/// Send buffer for messages: the most that a peer who reads no answers can make us keep.
const MESSAGES_SEND_WINDOW: u64 = MESSAGES_WINDOW as u64;

/// Streams a peer may have open: 16 workers each for several jobs, and requests.
const ROWS_STREAMS: u32 = 128;

/// Streams for messages: an agent uses one, an operator one per request.
const MESSAGES_STREAMS: u32 = 48;

/// Time until a silent peer is considered gone: a job whose agent died must end within 15 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);

/// The same for a watched screen, which must report the loss within 3 s.
const IDLE_TIMEOUT_WATCHING: Duration = Duration::from_millis(2_500);

/// Keep-alive probes per idle timeout; all but one may be lost.
const PROBES: u32 = 4;

/// The largest datagram tried. Up to ten are passed to the kernel at once for segmentation, and
/// together they must stay below UDP's 65,507 bytes, or the whole batch is rejected. So jumbo
/// frames of 9,000 are not filled; 6,500 gives most of their gain.
const MTU_MAX: u16 = 6_500;

/// Receive buffers grow with the largest datagram times what the kernel coalesces, so processes
/// that carry no rows stay at Ethernet's size.
const MTU_CONTROL: u16 = 1_452;

/// How a connection reacts to loss and delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// Models bandwidth and delay; keeps its rate at 1 % loss, where loss-based control collapses.
    #[default]
    Bbr,
    /// Loss-based; fair to others on a shared, clean path.
    Cubic,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Small messages.
    Control,
    /// Rows.
    Bulk,
}

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// It accepted the connection and answers requests.
    Listens,
    /// It dialled and sends requests. The other end opens no stream.
    Dials,
}

/// Settings of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// The kind of traffic.
    pub traffic: Traffic,
    /// The congestion control.
    pub congestion: Congestion,
    /// Time until a silent peer is considered gone. The shorter of both ends' applies.
    pub idle_timeout: Duration,
}

impl Tuning {
    /// For coordinator and CLI.
    pub const CONTROL: Self = Self {
        traffic: Traffic::Control,
        congestion: Congestion::Cubic,
        idle_timeout: IDLE_TIMEOUT,
    };
    /// For a screen that shows whether the coordinator is reachable.
    pub const WATCHING: Self = Self {
        idle_timeout: IDLE_TIMEOUT_WATCHING,
        ..Self::CONTROL
    };
    /// For agents.
    pub const BULK: Self = Self {
        traffic: Traffic::Bulk,
        congestion: Congestion::Bbr,
        idle_timeout: IDLE_TIMEOUT,
    };

    /// The largest UDP payload sent or received.
    pub(super) fn mtu_max(self) -> u16 {
        match self.traffic {
            Traffic::Control => MTU_CONTROL,
            Traffic::Bulk => MTU_MAX,
        }
    }

    /// Receive window, send buffer, and streams that the other end may open.
    fn windows(self, side: Side) -> (u32, u64, u32) {
        match (self.traffic, side) {
            (Traffic::Bulk, Side::Listens) => (REQUESTS_WINDOW, ROWS_SEND_WINDOW, ROWS_STREAMS),
            (Traffic::Bulk, Side::Dials) => (ROWS_WINDOW, ROWS_SEND_WINDOW, 0),
            (Traffic::Control, Side::Listens) => {
                (MESSAGES_WINDOW, MESSAGES_SEND_WINDOW, MESSAGES_STREAMS)
            }
            (Traffic::Control, Side::Dials) => (MESSAGES_WINDOW, MESSAGES_SEND_WINDOW, 0),
        }
    }

    pub(super) fn transport(self, side: Side) -> Arc<TransportConfig> {
        let (receive, send, streams) = self.windows(side);
        let mut transport = TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu_max());
        transport
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW.min(receive)))
            .receive_window(VarInt::from_u32(receive))
            .send_window(send)
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(
                self.idle_timeout
                    .try_into()
                    .expect("seconds fit in a QUIC timeout"),
            ))
            .keep_alive_interval(Some(self.idle_timeout / PROBES))
            .mtu_discovery_config(Some(discovery));
        match self.congestion {
            Congestion::Bbr => {
                transport.congestion_controller_factory(Arc::new(BbrConfig::default()));
            }
            Congestion::Cubic => {
                transport.congestion_controller_factory(Arc::new(CubicConfig::default()));
            }
        }
        Arc::new(transport)
    }
}
