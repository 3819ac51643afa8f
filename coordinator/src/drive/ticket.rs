//! Who waits for an answer.

use std::sync::{Arc, Mutex, PoisonError};

use super::handle::Reply;

/// An operator's pending question. The first answer counts; when the last clone is dropped without one, the
/// operator stops waiting.
#[derive(Debug, Clone)]
pub(super) struct Ticket(Arc<Mutex<Option<Reply>>>);

impl Ticket {
    pub(super) fn new(reply: Reply) -> Self {
        Self(Arc::new(Mutex::new(Some(reply))))
    }

    pub(super) fn take(self) -> Option<Reply> {
        let Self(reply) = self;
        reply.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
