//! Follows a comparison of rows until it has its result.

use steep_protocol::message::api::ApiReply;
use tokio::sync::watch;

use super::follow::stopping;
use super::{Ended, Stream};
use crate::drive::VerifyFeed;

impl Stream {
    /// [`steep_protocol::message::api::Order::Verify`]. The loop ends the comparison once this is dropped.
    pub(super) async fn verifying(
        &mut self,
        mut feed: watch::Receiver<VerifyFeed>,
    ) -> Result<(), Ended> {
        loop {
            let news = feed.borrow_and_update().clone();
            match news {
                VerifyFeed::Began => {}
                VerifyFeed::Progress(work) => self.reply(&ApiReply::Verifying(work)).await?,
                VerifyFeed::Ended(Ok(report)) => {
                    let report = Box::new(report.as_ref().clone());
                    return Ok(self.reply(&ApiReply::Compared(report)).await?);
                }
                VerifyFeed::Ended(Err(fault)) => return Err(fault.into()),
            }
            feed.changed().await.map_err(|_| stopping())?;
        }
    }
}
