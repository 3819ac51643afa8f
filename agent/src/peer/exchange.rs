//! The target's end of a shared snapshot: gets parts from the source or from other targets, as the source
//! says, and tells it which ones are kept here.
//!
//! A target that does not deliver costs the part another question, never the job: the source is told, and
//! names another one or reads the part. Only what the source itself has sent is accepted from a target; one that
//! sends anything else is asked no more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use steep_protocol::frame::FrameHead;
use steep_protocol::limits::{ASKED_MAX, RECEIVED_MAX};
use steep_protocol::message::agent::{CopyParts, SharedParts};
use steep_protocol::message::peer::{FetchKept, NextPart, PartAs, PartSum, Patience};
use steep_protocol::{Fault, FaultKind, Lsn, NodeId, Retry, SnapshotId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use super::connection::{Offer, SourceAgent};
use super::expected::Expected;
use super::queue::Slice;
use super::stream::Incoming;
use crate::chunk::Sent;
use crate::kept::{Copying, Store, Writer, Written};
use crate::mutex::lock;

/// A target that cannot be reached, or does not know us yet, is not asked for this long.
const AVOIDED: Duration = Duration::from_secs(30);

/// After so many targets that did not deliver a part, the source reads it.
const PEER_TRIES: usize = 4;

/// How long a target may take to begin a part that it keeps.
const ANSWER: Duration = Duration::from_secs(10);

/// Parts whose fate the source is yet to hear. It soon forgets that it waits for others.
const UNTOLD: usize = 1024;

/// How long the last of these may take once all parts are loaded.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Exchange {
    source: SourceAgent,
    store: Arc<Store>,
    snapshot: SnapshotId,
    lsn: Lsn,
    request: NextPart,
    peers: Mutex<HashMap<NodeId, Peer>>,
    received: mpsc::Sender<Received>,
    _copying: Copying,
}

#[derive(Debug)]
struct Peer {
    link: SourceAgent,
    avoided_until: Option<Instant>,
    /// It has sent other rows than the source.
    distrusted: Arc<AtomicBool>,
}

type Received = (PartAs, Option<Written>);

/// A part that begins to arrive.
#[derive(Debug)]
pub(super) struct Arriving {
    pub(super) part: PartAs,
    pub(super) incoming: Incoming,
    /// The target that sends it, where it is not the source.
    pub(super) peer: Option<NodeId>,
}

/// Keeps a part while it arrives, and has the source told.
#[derive(Debug)]
pub(crate) struct Tee {
    part: PartAs,
    writer: Option<Writer>,
    received: mpsc::Sender<Received>,
    /// Counts what another target sent.
    exchanged: Option<Arc<Store>>,
}

/// Tells the source what is kept, beside the copy.
#[derive(Debug)]
pub(super) struct Announcing(JoinSet<()>);

impl Exchange {
    pub(super) fn begin(
        source: &SourceAgent,
        store: &Arc<Store>,
        (request, shared): (&CopyParts, &SharedParts),
        lsn: Lsn,
    ) -> (Self, Announcing) {
        let (received, announced) = mpsc::channel(UNTOLD);
        let mut announcing = JoinSet::new();
        announcing.spawn(announce(source.clone(), announced));
        let exchange = Self {
            source: source.clone(),
            store: Arc::clone(store),
            snapshot: shared.snapshot,
            lsn,
            request: NextPart {
                job: source.job(),
                epoch: request.epoch,
                wanted: Vec::new(),
                peers: Vec::new(),
                failed: None,
                keeping: store.keeping(),
                patience: Patience::Some,
                compression: request.compression,
            },
            peers: Mutex::default(),
            received,
            _copying: store.begin(shared, (source.job(), lsn)),
        };
        (exchange, Announcing(announcing))
    }

    /// Gets one of the parts in `slice`, and leaves the others. `failed` did not deliver the first of them.
    /// `None` where all are on their way to other targets, and `patience` is none.
    pub(super) async fn get(
        &self,
        slice: &mut Slice<'_>,
        with_format: impl Fn(steep_protocol::PartNo) -> PartAs,
        mut failed: Option<NodeId>,
        mut patience: Patience,
    ) -> Result<Option<Arriving>, Fault> {
        for tries in 0..=PEER_TRIES {
            let offer = self.source.next_part(NextPart {
                wanted: slice
                    .parts()
                    .iter()
                    .map(|part| with_format(*part))
                    .collect(),
                peers: match tries < PEER_TRIES {
                    true => self.askable(),
                    false => Vec::new(),
                },
                failed: failed.take(),
                keeping: self.store.keeping(),
                patience,
                ..self.request.clone()
            });
            let (part, peer, sum) = match offer.await? {
                Offer::Later => return Ok(None),
                Offer::Part(part, incoming) if slice.choose(part) => {
                    let part = with_format(part);
                    let incoming = incoming.with(self.tee(part, None));
                    return Ok(Some(Arriving {
                        part,
                        incoming,
                        peer: None,
                    }));
                }
                Offer::Ask(part, peer, sum) if slice.choose(part) => (with_format(part), peer, sum),
                Offer::Part(..) | Offer::Ask(..) => break,
            };
            match self.fetch(&peer, part, sum).await {
                Ok(incoming) => {
                    let tee = self.tee(part, Some(Arc::clone(&self.store)));
                    return Ok(Some(Arriving {
                        part,
                        incoming: incoming.with(tee),
                        peer: Some(peer),
                    }));
                }
                Err(fault) => {
                    debug!(job_id = %self.request.job, part = part.part.0, %peer, error = %fault, "another target does not deliver a part");
                    match fault.kind {
                        // Others may reach it.
                        FaultKind::Unreachable | FaultKind::Unauthorized => self.avoid(&peer),
                        _ => failed = Some(peer),
                    }
                    patience = Patience::Some;
                }
            }
        }
        let node = self.source.source();
        let text = format!("the agent of {node} named parts or nodes that it was not asked for");
        Err(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
    }

    /// A part that a target keeps; nothing arrives whole that is not `sum`.
    async fn fetch(&self, peer: &NodeId, part: PartAs, sum: PartSum) -> Result<Incoming, Fault> {
        let (link, distrusted) = self.link(peer).ok_or_else(|| {
            let text = format!("the coordinator has not named {peer}");
            Fault::new(FaultKind::Failed, text)
        })?;
        let request = FetchKept {
            job: self.request.job,
            epoch: self.request.epoch,
            snapshot: self.snapshot,
            lsn: self.lsn,
            part,
        };
        match tokio::time::timeout(ANSWER, link.kept(request)).await {
            Ok(answer) => answer.map(|incoming| {
                incoming.expecting(Expected {
                    sum,
                    peer: peer.clone(),
                    distrusted,
                })
            }),
            Err(_) => {
                let text = format!("the agent of {peer} does not answer");
                Err(Fault::new(FaultKind::Unreachable, text))
            }
        }
    }

    fn tee(&self, part: PartAs, exchanged: Option<Arc<Store>>) -> Tee {
        Tee {
            part,
            writer: self.store.keep(self.snapshot, part),
            received: self.received.clone(),
            exchanged,
        }
    }

    /// Targets that the coordinator has named and that are neither avoided nor distrusted; some of them, if there are very many.
    fn askable(&self) -> Vec<NodeId> {
        let named = self.store.peers(self.snapshot).into_iter();
        let mut nodes: Vec<NodeId> = named.map(|peer| peer.node).collect();
        let now = Instant::now();
        let peers = lock(&self.peers);
        let avoided = |node: &NodeId| {
            peers.get(node).is_some_and(|peer| {
                let early = peer.avoided_until.is_some_and(|until| now < until);
                early || peer.distrusted.load(Ordering::Relaxed)
            })
        };
        nodes.retain(|node| !avoided(node));
        if nodes.len() > ASKED_MAX {
            nodes.shuffle(&mut rand::rng());
            nodes.truncate(ASKED_MAX);
        }
        nodes
    }

    /// The link to a target, at the newest address, and whether it is distrusted.
    fn link(&self, node: &NodeId) -> Option<(SourceAgent, Arc<AtomicBool>)> {
        let named = self.store.peers(self.snapshot).into_iter();
        let address = named.into_iter().find(|peer| peer.node == *node)?;
        let mut peers = lock(&self.peers);
        let known = peers.get(node);
        if let Some(peer) = known.filter(|peer| peer.link.is_at(&address)) {
            return Some((peer.link.clone(), Arc::clone(&peer.distrusted)));
        }
        let distrusted = known.map_or_else(Arc::default, |peer| Arc::clone(&peer.distrusted));
        let link = self.source.beside(address);
        let peer = Peer {
            link: link.clone(),
            avoided_until: None,
            distrusted: Arc::clone(&distrusted),
        };
        peers.insert(node.clone(), peer);
        Some((link, distrusted))
    }

    fn avoid(&self, node: &NodeId) {
        if let Some(peer) = lock(&self.peers).get_mut(node) {
            peer.avoided_until = Some(Instant::now() + AVOIDED);
        }
    }
}

impl Tee {
    pub(super) async fn chunk(&mut self, head: FrameHead, payload: &[u8]) {
        if let Some(writer) = self.writer.take() {
            self.writer = writer.chunk(head, payload).await;
        }
    }

    pub(super) async fn end(self, head: FrameHead, sent: Sent) {
        if let Some(store) = self.exchanged {
            store.fetched.moved(sent.bytes, sent.wire);
            store.fetched.completed(sent.rows);
        }
        let written = match self.writer {
            Some(writer) => writer.end(head).await,
            None => None,
        };
        // Where too many wait, the source hears nothing of it, which costs it a read at most.
        let _ = self.received.try_send((self.part, written));
    }
}

impl Announcing {
    /// Waits until the source has heard of everything, for a limited time. The [`Exchange`] is gone by then.
    pub(super) async fn end(mut self) {
        let _ = tokio::time::timeout(LAST_WORDS, self.0.join_next()).await;
    }
}

async fn announce(source: SourceAgent, mut received: mpsc::Receiver<Received>) {
    let mut batch = Vec::new();
    while received.recv_many(&mut batch, RECEIVED_MAX).await > 0 {
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for (part, written) in batch.drain(..) {
            let is_kept = match written {
                Some(written) => written.kept().await,
                None => false,
            };
            match is_kept {
                true => kept.push(part),
                false => dropped.push(part),
            }
        }
        if let Err(error) = source.received(kept, dropped).await {
            debug!(job_id = %source.job(), %error, "the source was not told which parts are kept");
        }
    }
}
