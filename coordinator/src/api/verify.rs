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
        let mut told = 0;
        loop {
            let (tables, work, ended) = {
                let news = feed.borrow_and_update();
                let tables = news.tables[told..].to_vec();
                (tables, news.work.clone(), news.ended.clone())
            };
            told += tables.len();
            for table in tables {
                let report = Box::new(table.as_ref().clone());
                self.reply(&ApiReply::TableCompared(report)).await?;
            }
            match (ended, work) {
                (None, None) => {}
                (None, Some(work)) => self.reply(&ApiReply::Verifying(work)).await?,
                (Some(Ok(report)), _) => {
                    let report = Box::new(report.as_ref().clone());
                    return Ok(self.reply(&ApiReply::Compared(report)).await?);
                }
                (Some(Err(fault)), _) => return Err(fault.into()),
            }
            feed.changed().await.map_err(|_| stopping())?;
        }
    }
}
