//! The audit trail for people, a line each.

use steep_protocol::message::api::AuditView;

use super::{Paint, clean};

/// When, who, from where, what, about whom, and what came of it.
pub(crate) fn wish(wish: &AuditView, paint: Paint) -> String {
    let arguments: Vec<String> = wish
        .arguments
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let outcome = match (&wish.refused, wish.job_id) {
        (Some(why), _) => paint.red(&format!("refused: {}", clean(why))),
        (None, Some(job)) => paint.dim(&format!("job {job}")),
        (None, None) => paint.dim("done"),
    };
    let from = wish
        .source_node
        .as_ref()
        .map(|source| format!(" from {source}"))
        .unwrap_or_default();
    format!(
        "{}  {}  {}  {:<6}  {}{from}  {}  {outcome}",
        paint.dim(&format!("{:.3}", wish.timestamp)),
        paint.bold(&clean(&wish.operator)),
        clean(&wish.address),
        clean(&wish.action),
        paint.bold(wish.node_id.as_str()),
        clean(&arguments.join(" ")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_wish_is_one_line() {
        let mut view = samples::wish();
        insta::assert_snapshot!(wish(&view, Paint::Plain));
        view.refused = Some("already synchronized\nrun reinit".to_owned());
        insta::assert_snapshot!(wish(&view, Paint::Plain));
    }
}
