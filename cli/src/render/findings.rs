//! What preflight found, for people: gravest first, each with what, where, why and what to do.

use std::cmp::Reverse;

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

/// What `--dry-run` says: what preflight found, then what would become of the schema.
pub(crate) fn dry_run(target: &NodeId, findings: &[Finding], paint: Paint) -> String {
    let (schema, rest): (Vec<_>, Vec<_>) = findings.iter().partition(|f| is_about_schema(f));
    let mut text = format!(
        "{}: {}\n",
        paint.bold(target.as_str()),
        summary(findings, paint)
    );
    text.push_str(&list(rest, paint));
    if schema.is_empty() {
        text.push_str("  schema: nothing to change; an empty target gets the source's schema\n");
    } else {
        text.push_str(&plan(target, schema, paint));
    }
    text
}

/// Differences between schemas, then the statements that would be run, in their order.
pub(crate) fn plan<'a>(
    target: &NodeId,
    findings: impl IntoIterator<Item = &'a Finding>,
    paint: Paint,
) -> String {
    let (statements, differences) = statements_and_differences(findings);
    let mut text = format!(
        "{}: {}, {}\n",
        paint.bold(target.as_str()),
        counted(differences.len(), "difference"),
        counted(statements.len(), "statement")
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

/// Whether the finding is a difference between the schemas, or a statement about one.
pub(crate) fn is_about_schema(finding: &Finding) -> bool {
    finding.code.starts_with("schema_")
}

/// The statements of a plan in their order, each of which begins with its number, and all other findings.
pub(super) fn statements_and_differences<'a>(
    findings: impl IntoIterator<Item = &'a Finding>,
) -> (Vec<&'a Finding>, Vec<&'a Finding>) {
    let (mut statements, differences): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|finding| finding.code == PLAN);
    statements.sort_by_key(|finding| {
        let number = finding.what.split(' ').next();
        number.map_or(u64::MAX, |number| number.parse().unwrap_or(u64::MAX))
    });
    (statements, differences)
}

/// The findings alone, grouped by severity.
pub(crate) fn list<'a>(findings: impl IntoIterator<Item = &'a Finding>, paint: Paint) -> String {
    let mut all: Vec<_> = findings.into_iter().collect();
    all.sort_by_key(|finding| Reverse(finding.severity));
    all.into_iter().map(|finding| one(finding, paint)).collect()
}

/// `2 errors, 1 warning`, or that all is well.
pub(crate) fn summary(findings: &[Finding], paint: Paint) -> String {
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => paint.green("ready: nothing stands in the way"),
        (0, warnings) => paint.yellow(&format!("ready, with {}", counted(warnings, "warning"))),
        (errors, 0) => paint.red(&counted(errors, "error")),
        (errors, warnings) => paint.red(&format!(
            "{}, {}",
            counted(errors, "error"),
            counted(warnings, "warning")
        )),
    }
}

/// `1 error`, `2 errors`.
fn counted(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
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
