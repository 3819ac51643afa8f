//! The audit trail for people, a line each.

use steep_protocol::message::api::AuditView;

use super::{Paint, clean};

/// When, who, from where, what, about whom, and what came of it.
pub(crate) fn entry(entry: &AuditView, paint: Paint) -> String {
    let arguments: Vec<String> = entry
        .arguments
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let outcome = match (&entry.refused, entry.job_id) {
        (Some(why), _) => paint.red(&format!("refused: {}", clean(why))),
        (None, Some(job)) => paint.dim(&format!("job {job}")),
        (None, None) => paint.dim("done"),
    };
    let from = entry
        .source_node
        .as_ref()
        .map(|source| format!(" from {source}"))
        .unwrap_or_default();
    format!(
        "{}  {}  {}  {:<6}  {}{from}  {}  {outcome}",
        paint.dim(&format!("{:.3}", entry.timestamp)),
        paint.bold(&clean(&entry.operator)),
        clean(&entry.address),
        clean(&entry.action),
        paint.bold(entry.node_id.as_str()),
        clean(&arguments.join(" ")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn an_audit_entry_is_one_line() {
        let mut view = samples::audit_entry();
        insta::assert_snapshot!(entry(&view, Paint::Plain));
        view.refused = Some("already synchronized\nrun reinit".to_owned());
        insta::assert_snapshot!(entry(&view, Paint::Plain));
    }
}
