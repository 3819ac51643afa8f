//! What comes from outside, made fit for a screen.

use steep_protocol::message::api::{JobView, TableView};
use steep_protocol::message::facts::Finding;

use crate::render::clean;

/// Clean and without line breaks.
pub(super) fn one_line(text: &str) -> String {
    clean(text).replace('\n', " ")
}

pub(super) fn clean_option(text: &mut Option<String>) {
    if let Some(text) = text {
        *text = one_line(text);
    }
}

pub(super) fn clean_table(table: &mut TableView) {
    table.schema = one_line(&table.schema);
    table.table = one_line(&table.table);
}

pub(super) fn clean_finding(finding: &mut Finding) {
    finding.code = one_line(&finding.code);
    for text in [&mut finding.what, &mut finding.why, &mut finding.fix] {
        *text = clean(text);
    }
}

pub(super) fn clean_job(job: &mut JobView) {
    job.operator = one_line(&job.operator);
    job.tables.iter_mut().for_each(clean_table);
    job.findings.iter_mut().for_each(clean_finding);
    let Some(end) = &mut job.end else { return };
    if let Some(fault) = &mut end.fault {
        fault.message = clean(&fault.message);
        fault.hint = clean(&fault.hint);
    }
    end.warnings.iter_mut().for_each(clean_finding);
    for table in &mut end.report.slowest_tables {
        table.schema = one_line(&table.schema);
        table.table = one_line(&table.table);
    }
    for text in &mut end.report.not_copied {
        *text = one_line(text);
    }
}
