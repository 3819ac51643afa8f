//! Several streams of replies as one.

use steep_protocol::message::api::ApiReply;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Replies, ReplyError};

/// Replies waiting to be shown. The coordinator waits when a slow terminal fills it.
const QUEUE: usize = 64;

/// What a feed gives.
#[derive(Debug)]
pub(super) enum Item {
    /// A reply of any of the streams.
    Reply(Box<ApiReply>),
    /// A stream was lost or refused.
    Failed(ReplyError),
    /// Every stream has input all.
    Over,
}

/// Streams of replies, merged. Dropping it gives them up.
#[derive(Debug)]
pub(super) struct Feed {
    items: mpsc::Receiver<Item>,
    _readers: JoinSet<()>,
}

impl Feed {
    /// Reads all of them.
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

    /// The next item; [`Item::Over`] again and again at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Item {
        self.items.recv().await.unwrap_or(Item::Over)
    }
}
