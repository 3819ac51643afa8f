//! The plan and the schema, in pages.

use steep_protocol::limits::PLAN_PAGE;
use steep_protocol::message::job::Compression;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::quic::{Connection, Sender, StreamError};

use super::Server;
use crate::chunk::{Packer, PartReader};
use crate::peer::stream;
use crate::pg::catalog;
use crate::snapshot::stored::Holder;
use crate::snapshot::{SourceJob, describe_replicated};
use crate::telemetry::Flow;

impl Server {
    pub(super) async fn describe(
        &self,
        entry: &SourceJob,
        sender: &mut Sender,
    ) -> Result<(), StreamError> {
        let described = match entry.replication {
            Some(job) => describe_replicated(&self.conninfo, &entry.filter, job).await,
            None => catalog::describe(&self.conninfo, &entry.filter).await,
        };
        let pages = match described {
            Ok(schema) => schema.into_pages(),
            Err(error) => {
                return sender
                    .send(&PeerReply::Fault(error.to_fault(&self.node)))
                    .await;
            }
        };
        let count = pages.len();
        for (at, page) in (1..).zip(pages) {
            let last = at == count;
            sender.send(&PeerReply::Schema { page, last }).await?;
        }
        Ok(())
    }
}

pub(super) async fn send_plan(open: &Holder, sender: &mut Sender) -> Result<(), StreamError> {
    for (tables, last) in pages(open.tables()) {
        let (lsn, encoding) = (open.lsn(), open.encoding().to_owned());
        sender
            .send(&PeerReply::Plan {
                lsn,
                encoding,
                tables: tables.to_vec(),
                last,
            })
            .await?;
    }
    Ok(())
}

/// Sends a section of the schema like a part.
pub(super) async fn send_text(
    mut text: impl PartReader,
    connection: &Connection,
    sender: &mut Sender,
) -> Result<(), StreamError> {
    sender.send(&PeerReply::FramesFollow).await?;
    let packer = Packer::new(Compression::Auto, connection.rtt());
    let sent = stream::send(&mut text, packer, sender, &Flow::default()).await;
    sent.map(drop)
}

/// At least one page; the last one is marked.
fn pages<T>(all: &[T]) -> impl Iterator<Item = (&[T], bool)> {
    let count = all.len().div_ceil(PLAN_PAGE).max(1);
    (0..count).map(move |at| {
        let from = at * PLAN_PAGE;
        (&all[from..all.len().min(from + PLAN_PAGE)], at + 1 == count)
    })
}

#[cfg(test)]
mod tests {
    use super::pages;

    #[test]
    fn a_list_is_paged_whole_and_its_last_page_is_marked() {
        for length in [0, 1, 49, 50, 51, 100, 101] {
            let all: Vec<usize> = (0..length).collect();
            let pages: Vec<_> = pages(&all).collect();
            let joined: Vec<usize> = pages.iter().flat_map(|(p, _)| p.iter().copied()).collect();
            assert_eq!(joined, all);
            let marks: Vec<bool> = pages.iter().map(|(_, last)| *last).collect();
            assert_eq!(marks.iter().filter(|m| **m).count(), 1);
            assert_eq!(marks.last(), Some(&true));
        }
    }
}
