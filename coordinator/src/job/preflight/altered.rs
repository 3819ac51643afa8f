//! Functions of extensions that were altered by hand; a fresh target has the originals.

use steep_protocol::message::facts::{AlteredFunction, Finding, Listed, Severity};

use super::text::{all_names, names};
use super::{Pair, Text, finding};

/// Most statements in one finding.
const STATEMENTS: usize = 10;

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    if !pair.schema_is_created() {
        return;
    }
    let all = &pair.source.loading.altered;
    let missing = all.iter().filter(|altered| !is_on_target(pair, altered));
    let (sure, unsure): (Vec<_>, Vec<_>) = missing.partition(|altered| altered.sure);
    let sure_why = "PostgreSQL takes only immutable functions there, and an extension is made on the target as its script has it: these tables cannot be made";
    let unsure_why = "their rows in the catalog were changed after their extensions were made, by a grant, a new owner or a declaration: if they were declared immutable, these tables cannot be made on the target";
    let index_why = "an extension is made on the target as its script has it: if its function is not immutable there, the node synchronizes without these indexes, and `init rebuild` makes them once the function is altered";
    let every: Vec<_> = sure.iter().chain(&unsure).copied().collect();
    for (severity, functions, uses, why) in [
        (Severity::Error, &sure, Uses::Tables, sure_why),
        (Severity::Warning, &unsure, Uses::Tables, unsure_why),
        (Severity::Warning, &every, Uses::Indexes, index_why),
    ] {
        findings.extend(used_functions(pair, severity, functions, uses, why));
    }
}

/// The objects that use a function and cannot be created.
#[derive(Debug, Clone, Copy)]
enum Uses {
    Tables,
    Indexes,
}

impl Uses {
    fn of(self, altered: &AlteredFunction) -> &Listed {
        match self {
            Self::Tables => &altered.tables,
            Self::Indexes => &altered.indexes,
        }
    }
}

/// Whether the target has the extension with that function immutable.
fn is_on_target(pair: &Pair<'_>, altered: &AlteredFunction) -> bool {
    let installed = &pair.target.server.extensions;
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    installed
        .iter()
        .any(|(name, _)| quoted(name) == altered.extension)
        && !pair.target.mutable_members.contains(&altered.function)
}

fn used_functions(
    pair: &Pair<'_>,
    severity: Severity,
    functions: &[&AlteredFunction],
    uses: Uses,
    why: &str,
) -> Option<Finding> {
    let used: Vec<_> = functions
        .iter()
        .filter(|altered| !uses.of(altered).is_empty())
        .collect();
    if used.is_empty() {
        return None;
    }
    let what: Vec<String> = used
        .iter()
        .map(|altered| {
            format!(
                "{} of extension {} is used by {}",
                altered.function,
                altered.extension,
                names(uses.of(altered))
            )
        })
        .collect();
    let mut statements: Vec<String> = used
        .iter()
        .take(STATEMENTS)
        .map(|altered| {
            format!(
                "CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {}; ALTER FUNCTION {} IMMUTABLE",
                altered.extension, altered.schema, altered.function
            )
        })
        .collect();
    if used.len() > STATEMENTS {
        statements.push("and so on".to_owned());
    }
    Some(finding(
        severity,
        "extension_function_altered",
        &pair.spec.target,
        Text::new(
            format!(
                "functions of extensions were altered by hand on the source, which pg_dump does not include: {}",
                all_names(&what)
            ),
            why,
            format!("on this node, first: {}", statements.join("; ")),
        ),
    ))
}
