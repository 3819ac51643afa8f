//! Merges several streams of replies.

use steep_protocol::message::api::ApiReply;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Replies, ReplyError};

/// Replies waiting to be shown. If a slow terminal lets the queue fill, the coordinator waits.
const QUEUE: usize = 64;

#[derive(Debug)]
pub(super) enum Item {
    /// A reply from one of the streams.
    Reply(Box<ApiReply>),
    /// A stream was lost or refused.
    Failed(ReplyError),
    /// All streams have ended.
    Over,
}

/// The merged streams. Dropping it abandons them.
#[derive(Debug)]
pub(super) struct Feed {
    items: mpsc::Receiver<Item>,
    _readers: JoinSet<()>,
}

impl Feed {
    /// Merges these streams.
    pub(super) fn of(all: Vec<Replies>) -> Self {
        let (sender, items) = mpsc::channel(QUEUE);
        let mut readers = JoinSet::new();
        for mut replies in all {
            let sender = sender.clone();
            readers.spawn(async move {
                loop {
                    let item = match replies.next().await {
                        Ok(Some(reply)) => Item::Reply(Box::new(reply)),
                        Ok(None) => return,
                        Err(broken) => Item::Failed(broken),
                    };
                    let last = matches!(item, Item::Failed(_));
                    if sender.send(item).await.is_err() || last {
                        return;
                    }
                }
            });
        }
        Self {
            items,
            _readers: readers,
        }
    }

    /// The next item; at the end always [`Item::Over`]. Cancel-safe.
    pub(super) async fn next(&mut self) -> Item {
        self.items.recv().await.unwrap_or(Item::Over)
    }
}
