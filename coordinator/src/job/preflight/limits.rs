//! Settings that could end the job midway: limits on slots, timeouts, limits on the age of snapshots.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::Method;

use super::servers::quoted;
use super::text::bytes;
use super::{End, Pair, Text, error, info, warning};

/// No copy is faster than this, in bytes a second; a timeout that would require more is an error.
const FASTEST_COPY: u64 = 1_000_000_000;

/// A slot that may keep less is lost in any minute with a high write load.
const SMALL_SLOT_LIMIT: ByteCount = ByteCount(1_000_000_000);

/// One slow commit disconnects walsenders with a shorter timeout, in milliseconds.
const SHORT_WAL_SENDER_TIMEOUT: i64 = 10_000;

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let (source, target) = (pair.source_end(), pair.target_end());
    if !matches!(
        pair.spec.method,
        Method::Native | Method::Backup | Method::Merge
    ) {
        findings.extend(slot_idle_timeout(pair, &source));
        findings.extend(old_snapshots(&source));
    }
    if pair.makes_slot() {
        findings.extend(slot_wal_limit(pair, &source));
    }
    findings.extend(wal_sender_timeout(&source));
    findings.extend(transaction_timeout(&target));
    for end in [&source, &target] {
        findings.extend(session_timeouts(end));
    }
}

/// Limits that could end a prepared slot early.
pub(super) fn judge_source(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let end = pair.source_end();
    let set = |name: &str, none: i64| end.server.number(name).filter(|value| *value != none);
    let limits = [
        set("max_slot_wal_keep_size", -1).map(|mb| format!("max_slot_wal_keep_size is {mb} MB")),
        set("idle_replication_slot_timeout", 0)
            .map(|seconds| format!("idle_replication_slot_timeout is {seconds} s")),
    ];
    findings.extend(limits.into_iter().flatten().map(|what| {
        let text = Text::new(
            what,
            "PostgreSQL invalidates the prepared slot beyond that, and the backup is useless then",
            "run init complete before that, or raise the limit until then",
        );
        warning("prepared_slot_limit", end.node, text)
    }));
}

fn slot_wal_limit(pair: &Pair<'_>, end: &End<'_>) -> Option<Finding> {
    let megabytes = end.server.number("max_slot_wal_keep_size")?;
    // -1 is no limit.
    let limit = ByteCount(u64::try_from(megabytes).ok()? * 1024 * 1024);
    let text = Text::new(
        format!("max_slot_wal_keep_size is {}", bytes(limit)),
        format!(
            "PostgreSQL invalidates the job's slot once it holds back more WAL than that; copying takes as long as {} take, and every change meanwhile stays in WAL",
            bytes(pair.source.total_bytes)
        ),
        "raise max_slot_wal_keep_size (a reload suffices) to what is written during the copy and what the disk can hold, until the node is synchronized",
    );
    let small = limit < SMALL_SLOT_LIMIT.max(pair.source.total_bytes);
    Some(if small {
        warning("slot_wal_limit", end.node, text)
    } else {
        info("slot_wal_limit", end.node, text)
    })
}

fn slot_idle_timeout(pair: &Pair<'_>, end: &End<'_>) -> Option<Finding> {
    let seconds = end.server.number("idle_replication_slot_timeout")?;
    let seconds = u64::try_from(seconds).ok().filter(|&s| s > 0)?;
    let rate = pair.spec.max_rate.map_or(FASTEST_COPY, |r| r.0.max(1));
    let at_least = pair.source.total_bytes.0 / rate.min(FASTEST_COPY);
    let text = Text::new(
        format!("idle_replication_slot_timeout is {seconds} s"),
        format!(
            "the job's slot is idle while rows are copied, and PostgreSQL invalidates slots that are idle for longer; copying {} takes at least {at_least} s",
            bytes(pair.source.total_bytes)
        ),
        "ALTER SYSTEM SET idle_replication_slot_timeout = 0, then SELECT pg_reload_conf(), until the node is synchronized",
    );
    Some(if seconds < at_least {
        error("slot_idle_timeout", end.node, text)
    } else {
        warning("slot_idle_timeout", end.node, text)
    })
}

fn old_snapshots(end: &End<'_>) -> Option<Finding> {
    let minutes = end.server.number("old_snapshot_threshold")?;
    (minutes >= 0).then(|| {
        warning(
            "old_snapshot_threshold",
            end.node,
            Text::new(
                format!("old_snapshot_threshold is {minutes} min"),
                "once the job's snapshot is older, reading a changed page with it fails with \"snapshot too old\"",
                "ALTER SYSTEM SET old_snapshot_threshold = -1 and restart this server, or make sure that the copy is faster",
            ),
        )
    })
}

fn wal_sender_timeout(end: &End<'_>) -> Option<Finding> {
    let millis = end.server.number("wal_sender_timeout")?;
    (millis > 0 && millis < SHORT_WAL_SENDER_TIMEOUT).then(|| {
        warning(
            "wal_sender_timeout",
            end.node,
            Text::new(
                format!("wal_sender_timeout is {millis} ms"),
                "a subscriber that is busy for longer is disconnected, and applies its transaction again from the start",
                "ALTER SYSTEM SET wal_sender_timeout = '60s', then SELECT pg_reload_conf()",
            ),
        )
    })
}

fn transaction_timeout(end: &End<'_>) -> Option<Finding> {
    let millis = end.server.number("transaction_timeout")?;
    (millis > 0).then(|| {
        warning(
            "transaction_timeout",
            end.node,
            Text::new(
                format!(
                    "transaction_timeout is {millis} ms for role {}",
                    end.server.role
                ),
                "the subscription's worker runs under this role's settings: a source transaction that takes longer to apply is cancelled and tried again without end",
                format!("ALTER ROLE {} SET transaction_timeout = 0", quoted(&end.server.role)),
            ),
        )
    })
}

fn session_timeouts(end: &End<'_>) -> Option<Finding> {
    const TIMEOUTS: [&str; 4] = [
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "lock_timeout",
    ];
    let set: Vec<String> = TIMEOUTS
        .iter()
        .filter_map(|name| Some((name, end.server.number(name)?)))
        .filter(|(_, millis)| *millis > 0)
        .map(|(name, millis)| format!("{name} = {millis} ms"))
        .collect();
    (!set.is_empty()).then(|| {
        info(
            "timeouts",
            end.node,
            Text::new(
                format!("timeouts are set for role {}: {}", end.server.role, set.join(", ")),
                "they would end long copies and the session that holds the snapshot; steep-repl switches them off in its own sessions",
                "nothing, unless something other than PostgreSQL ends long or idle sessions",
            ),
        )
    })
}
