//! What a node lacks of its source's schema, for people.

use steep_protocol::NodeId;
use steep_protocol::message::agent::{MissingObjects, Rebuilt};

use super::{Paint, findings};

/// What a rebuild came to.
pub(crate) fn rebuilt(node: &NodeId, rebuilt: &Rebuilt, paint: Paint) -> String {
    let node = paint.bold(node.as_str());
    let missing = &rebuilt.missing;
    match (rebuilt.made, missing.total) {
        (0, 0) => format!("{node}: nothing is missing\n"),
        (made, 0) => format!(
            "{node}: {}, nothing is missing any more\n",
            objects(made, "made")
        ),
        (made, total) => format!(
            "{node}: {}, {}\n{}",
            objects(made, "made"),
            paint.yellow(&objects(total, "still missing")),
            list(missing, paint)
        ),
    }
}

/// Every object, with why and what to do.
pub(crate) fn list(missing: &MissingObjects, paint: Paint) -> String {
    findings::list(&missing.findings, paint)
}

/// One line, for the state of a node.
pub(crate) fn line(node: &NodeId, total: u64, paint: Paint) -> String {
    let what = paint.yellow(&objects(total, "missing"));
    format!("{what}; once the cause is mended: steep-repl init rebuild --node {node}")
}

fn objects(number: u64, how: &str) -> String {
    match number {
        1 => format!("1 object {how}"),
        _ => format!("{number} objects {how}"),
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::facts::Severity;

    use super::super::samples::{finding, id};
    use super::*;

    #[test]
    fn a_rebuild_says_what_was_made_and_what_is_still_missing() {
        let missing = MissingObjects {
            total: 2,
            findings: vec![
                finding(Severity::Warning, "object_missing"),
                finding(Severity::Warning, "missing_role"),
            ],
        };
        let partly = Rebuilt { made: 1, missing };
        let node = id("node_b");
        insta::assert_snapshot!(rebuilt(&node, &partly, Paint::Plain));
        let whole = Rebuilt {
            made: 3,
            missing: MissingObjects::default(),
        };
        assert_eq!(
            rebuilt(&node, &whole, Paint::Plain),
            "node_b: 3 objects made, nothing is missing any more\n"
        );
        assert_eq!(
            rebuilt(&node, &Rebuilt::default(), Paint::Plain),
            "node_b: nothing is missing\n"
        );
    }
}
