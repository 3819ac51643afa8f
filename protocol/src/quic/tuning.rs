//! What the transport is told, each number with its reason.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::wire::limits::STREAM_WINDOW;

/// Unread bytes of all streams of a connection that rows arrive by: 16 workers with a full window each,
/// and some.
const ROWS_WINDOW: u32 = 24 * 1024 * 1024;

/// The same where requests alone arrive: 128 at their longest.
const REQUESTS_WINDOW: u32 = 512 * 1024;

/// The same where messages arrive: the longest takes some round trips.
const MESSAGES_WINDOW: u32 = 2 * 1024 * 1024;

/// Bytes of rows kept for retransmission. As much as the other end may have outstanding.
const ROWS_SEND_WINDOW: u64 = ROWS_WINDOW as u64;

/// The same of messages: what one who does not read his answers can make us keep.
const MESSAGES_SEND_WINDOW: u64 = MESSAGES_WINDOW as u64;

/// Streams a peer may have open at once: 16 workers each of several jobs, and questions beside.
const ROWS_STREAMS: u32 = 128;

/// The same where messages are exchanged: an agent has one, an operator one a question.
const MESSAGES_STREAMS: u32 = 48;

/// A silent peer is gone after this: a job whose agent died is to end within 15 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);

/// The same for somebody who watches a screen, who is to know within 3 s.
const IDLE_TIMEOUT_WATCHING: Duration = Duration::from_millis(2_500);

/// Probes in the idle timeout, of which all but one may be lost.
const PROBES: u32 = 4;

/// The largest datagram tried. The sender hands the kernel up to ten at once for segmentation, and
/// ten must stay below UDP's 65,507 bytes, or each batch is refused as a whole: jumbo frames of
/// 9,000 are therefore not filled, and 6,500 gives most of their gain.
const MTU_MAX: u16 = 6_500;

/// Receive batches are as long as the largest datagram times what the kernel coalesces, so processes
/// that carry no rows stay at Ethernet's size.
const MTU_CONTROL: u16 = 1_452;

/// How a connection reacts to loss and delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// Models bandwidth and delay; keeps going at 1 % loss, where loss-based control collapses.
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
    /// It was called, and is asked.
    Listens,
    /// It called, and asks. Nobody opens a stream to it.
    Dials,
}

/// How endpoints are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// What they carry.
    pub traffic: Traffic,
    /// How they react to loss.
    pub congestion: Congestion,
    /// How soon a silent peer counts as gone. The shorter time of both ends holds.
    pub idle_timeout: Duration,
}

impl Tuning {
    /// For the coordinator and the CLI.
    pub const CONTROL: Self = Self {
        traffic: Traffic::Control,
        congestion: Congestion::Cubic,
        idle_timeout: IDLE_TIMEOUT,
    };
    /// For a screen that shows whether the coordinator is there.
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

    /// Unread bytes of a connection, bytes kept for retransmission, and streams that the other end opens.
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
