//! What preflight found, for people: gravest first, each with what, where, why and what to do.

use steep_protocol::NodeId;
use steep_protocol::message::facts::{Finding, Severity};

use super::table::pairs;
use super::{Paint, clean, paragraph};

/// The findings for one target, under a line that counts them.
pub(crate) fn report(target: &NodeId, findings: &[Finding], paint: Paint) -> String {
    let mut text = format!(
        "{}: {}\n",
        paint.bold(target.as_str()),
        summary(findings, paint)
    );
    text.push_str(&list(findings, paint));
    text
}

/// Differences between schemas, then the statements that would be run, in their order.
pub(crate) fn plan(target: &NodeId, findings: &[Finding], paint: Paint) -> String {
    let (statements, differences) = statements_and_differences(findings);
    let mut text = format!(
        "{}: {} differences, {} statements\n",
        paint.bold(target.as_str()),
        differences.len(),
        statements.len()
    );
    for finding in differences.iter().chain(&statements) {
        let what = paragraph(&finding.what);
        text.push_str("  ");
        text.push_str(&match finding.severity {
            Severity::Error => paint.red(&what),
            Severity::Warning => paint.yellow(&what),
            Severity::Info => what,
        });
        text.push('\n');
    }
    text
}

/// The code of a statement of a plan.
const PLAN: &str = "schema_plan";

/// The statements of a plan in their order, each of which begins with its number, and all other findings.
pub(super) fn statements_and_differences(findings: &[Finding]) -> (Vec<&Finding>, Vec<&Finding>) {
    let (mut statements, differences): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| finding.code == PLAN);
    statements.sort_by_key(|finding| {
        let number = finding.what.split(' ').next();
        number.map_or(u64::MAX, |number| number.parse().unwrap_or(u64::MAX))
    });
    (statements, differences)
}

/// The findings alone, grouped by severity.
pub(crate) fn list(findings: &[Finding], paint: Paint) -> String {
    let mut text = String::new();
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        let group = findings
            .iter()
            .filter(|finding| finding.severity == severity);
        for finding in group {
            text.push_str(&one(finding, paint));
        }
    }
    text
}

/// `2 errors, 1 warning`, or that all is well.
pub(crate) fn summary(findings: &[Finding], paint: Paint) -> String {
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let say = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => paint.green("ready: nothing stands in the way"),
        (0, warnings) => paint.yellow(&format!("ready, with {}", say(warnings, "warning"))),
        (errors, 0) => paint.red(&say(errors, "error")),
        (errors, warnings) => paint.red(&format!(
            "{}, {}",
            say(errors, "error"),
            say(warnings, "warning")
        )),
    }
}

fn one(finding: &Finding, paint: Paint) -> String {
    let severity = match finding.severity {
        Severity::Error => paint.red("error"),
        Severity::Warning => paint.yellow("warning"),
        Severity::Info => paint.dim("info"),
    };
    let node = match &finding.node {
        Some(node) => format!("{}: ", paint.bold(node.as_str())),
        None => String::new(),
    };
    let code = paint.dim(&format!("[{}]", clean(&finding.code)));
    let what = paragraph(&finding.what);
    let mut text = format!("  {severity} {node}{what} {code}\n");
    let more = [
        ("why", paragraph(&finding.why)),
        ("fix", paragraph(&finding.fix)),
    ];
    let more: Vec<_> = more
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    text.push_str(&pairs(&more, 4, paint));
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples::{finding, id};
    use super::*;

    #[test]
    fn findings_are_grouped_gravest_first() {
        let mut nowhere = finding(Severity::Info, "note");
        nowhere.node = None;
        nowhere.why = String::new();
        nowhere.fix = String::new();
        let findings = [
            finding(Severity::Warning, "clock"),
            nowhere,
            finding(Severity::Error, "wal_level"),
        ];
        insta::assert_snapshot!(report(&id("node_b"), &findings, Paint::Plain));
        insta::assert_snapshot!(report(&id("node_b"), &[], Paint::Plain));
        insta::assert_snapshot!(summary(&findings[..1], Paint::Plain));
    }
}
