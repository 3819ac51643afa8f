//! Follows a switchover until it has ended, or until only the new node keeps it from being undone.

use steep_protocol::Fault;
use steep_protocol::FaultKind;
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::switchover::{SwitchoverStep, SwitchoverView};
use tokio::sync::watch;

use super::follow::stopping;
use super::{Ended, Stream};

impl Stream {
    /// [`steep_protocol::message::api::Order::Switchover`]. Until it is decided, the loop undoes a switchover that
    /// nobody follows.
    pub(super) async fn switching(
        &mut self,
        mut feed: watch::Receiver<SwitchoverView>,
    ) -> Result<(), Ended> {
        loop {
            let view = feed.borrow_and_update().clone();
            let step = view.step;
            let fault = view.fault.clone();
            let undone = view.is_undone();
            self.reply(&ApiReply::Switchover(Box::new(view))).await?;
            if step == SwitchoverStep::Completed {
                return Ok(());
            }
            if undone {
                let none = || Fault::new(FaultKind::Failed, "the switchover was undone");
                return Err(fault.unwrap_or_else(none).into());
            }
            tokio::select! {
                changed = feed.changed() => changed.map_err(|_| stopping())?,
                // A step may last, and an operator who leaves has it undone.
                left = self.sender.drained() => return Ok(left?),
            }
        }
    }
}
