//! Sets the node's sequences to the source's: while it follows, and once it no longer does.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use steep_protocol::message::agent::SequencesRaised;
use steep_protocol::message::facts::{Finding, SEQUENCE_NOT_TAKEN_OVER, Severity};
use steep_protocol::{Fault, FaultKind, Retry};

use crate::node::connection::Conn;
use crate::peer::connection::SourceAgent;
use crate::pg::SHORT_LOCK_TIMEOUT;
use crate::replication::sequence_use;
use crate::task::Task;

/// How often the source's agent is asked again after the connection to it was lost.
const LOST_TRIES: usize = 2;

const LOST_AGAIN: Duration = Duration::from_secs(1);

/// Raises those that are behind the source's.
pub(crate) async fn raise_sequences(
    task: &Task,
    source: &SourceAgent,
) -> Result<SequencesRaised, Fault> {
    let used = source.sequences_used().await?;
    let conn = Conn::to_catalog(task, "sequences").await?;
    conn.execute(SHORT_LOCK_TIMEOUT).await?;
    let raised = sequence_use::raise(&conn, &used).await;
    conn.give_back().await;
    raised
}

/// Asks again where the source's agent may have been started again: what it was told to permit, it is told anew.
async fn raise_again(task: &Task, source: &SourceAgent) -> Result<SequencesRaised, Fault> {
    let again = ConstantBuilder::new()
        .with_delay(LOST_AGAIN)
        .with_max_times(LOST_TRIES);
    (|| raise_sequences(task, source))
        .retry(again)
        .when(|fault| fault.retry == Retry::NewConnection)
        .await
}

/// The same for a node that no longer applies changes: from here on its applications take values.
pub(super) async fn take_over(
    task: &Task,
    source: Option<&SourceAgent>,
) -> Result<Vec<Finding>, Fault> {
    let problems = match source {
        None => vec![
            "the sequences here were not set to the source's, which cannot be reached".to_owned(),
        ],
        Some(source) => match raise_again(task, source).await {
            Ok(raised) => {
                tracing::info!(node_id = %task.node, followed = raised.followed, raised = raised.raised, "the sequences are set to the source's");
                raised
                    .problems
                    .into_iter()
                    .chain(raised.left_alone)
                    .collect()
            }
            // Admitted again, this node may ask.
            Err(fault)
                if matches!(fault.kind, FaultKind::Cancelled | FaultKind::Unauthorized)
                    && fault.node.as_ref() != Some(&task.node) =>
            {
                return Err(fault);
            }
            // The subscription is gone: nothing is won by another try.
            Err(fault) => vec![format!(
                "the sequences here were not set to the source's: {fault}"
            )],
        },
    };
    let finding = |problem| Finding {
        severity: Severity::Warning,
        code: SEQUENCE_NOT_TAKEN_OVER.to_owned(),
        node: Some(task.node.clone()),
        what: problem,
        why: "once this node is written to, it may give out values that are taken".to_owned(),
        fix: "set them with setval before applications write here".to_owned(),
    };
    Ok(problems.into_iter().map(finding).collect())
}
