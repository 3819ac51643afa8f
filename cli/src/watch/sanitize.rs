//! Removes control characters from text of the coordinator.

use steep_protocol::message::api::{JobView, TableView};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::snapshot::SnapshotView;

use crate::render::{clean, paragraph};

pub(super) fn clean_option(text: &mut Option<String>) {
    if let Some(text) = text {
        *text = clean(text);
    }
}

pub(super) fn clean_table(table: &mut TableView) {
    table.schema = clean(&table.schema);
    table.table = clean(&table.table);
}

pub(super) fn clean_snapshot(view: &mut SnapshotView) {
    clean_option(&mut view.error_message);
    clean_option(&mut view.current_table);
    view.warnings
        .iter_mut()
        .for_each(|text| *text = clean(text));
    // Not shown.
    (view.location, view.hint) = (None, None);
    view.holders.clear();
    view.operator.clear();
}

pub(super) fn clean_finding(finding: &mut Finding) {
    finding.code = clean(&finding.code);
    for text in [&mut finding.what, &mut finding.why, &mut finding.fix] {
        *text = paragraph(text);
    }
}

pub(super) fn clean_job(job: &mut JobView) {
    job.operator = clean(&job.operator);
    job.tables.iter_mut().for_each(clean_table);
    job.findings.iter_mut().for_each(clean_finding);
    let Some(end) = &mut job.end else { return };
    if let Some(fault) = &mut end.fault {
        fault.message = paragraph(&fault.message);
        fault.hint = paragraph(&fault.hint);
    }
    end.warnings.iter_mut().for_each(clean_finding);
    for table in &mut end.report.slowest_tables {
        table.schema = clean(&table.schema);
        table.table = clean(&table.table);
    }
    for text in &mut end.report.not_copied {
        *text = clean(text);
    }
    for lost in &mut end.report.lost_snapshots {
        lost.reason = clean(&lost.reason);
    }
}
