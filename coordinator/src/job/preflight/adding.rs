//! The words of findings about tables that are added: what helps is said in terms of `tables add`, not of `init`.

use steep_protocol::message::facts::Finding;

/// What is said to people who initialise a node, and what to those who name tables.
const WORDS: [(&str, &str); 8] = [
    (
        "exclude them too with --exclude-table, or include what they depend on",
        "do not name them, or name what they depend on as well",
    ),
    (
        "check --include-schema and --exclude-table, and",
        "check the names, and",
    ),
    (
        "leave these tables out with --exclude-table",
        "do not name these tables",
    ),
    (
        "leave the tables out with --exclude-table",
        "do not name the tables",
    ),
    ("leave them out with --exclude-table", "do not name them"),
    (
        "; or run init with --method native, which loads with each owner's own rights",
        "",
    ),
    (", --dry-run shows how", ""),
    (", or start with a target database without tables", ""),
];

/// Says what to do in the words of `tables add`.
pub(super) fn reword(findings: &mut [Finding]) {
    for finding in findings {
        for (init, add) in WORDS {
            for text in [&mut finding.why, &mut finding.fix] {
                if text.contains(init) {
                    *text = text.replace(init, add);
                }
            }
        }
    }
}
