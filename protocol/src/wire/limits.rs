//! Limits for lengths from outside, checked before anything is allocated.

/// The longest control frame, in bytes. A plan travels in pages ([`PLAN_PAGE`]), so the largest
/// message is a page of table descriptions or a list of preflight findings, well below this.
pub const CONTROL_FRAME_MAX: usize = 16 * 1024 * 1024;

/// The longest request of one agent to another, in bytes: ids, numbers and some names.
pub const PEER_REQUEST_MAX: usize = 4 * 1024;

/// The longest request of an operator, in bytes: filters of several jobs, some thousand names.
pub const API_REQUEST_MAX: usize = 256 * 1024;

/// The longest registration of an agent, in bytes: ten thousand snapshots and their targets.
pub const REGISTRATION_MAX: usize = 1024 * 1024;

/// The longest note that a target keeps of its job, in bytes: twice the longest request of an operator, whose filter
/// it has.
pub const JOB_NOTE_MAX: usize = 2 * API_REQUEST_MAX;

/// Tables in one page of a plan: at 1,600 columns of 63-byte names each (PostgreSQL's limits) a
/// page of 50 still fits a control frame.
pub const PLAN_PAGE: usize = 50;

/// Tables of one job. A connection that lists more is closed.
pub const TABLES_MAX: usize = 1_000_000;

/// Pages of one schema: a gigabyte of text, which is a million tables of a few columns each.
pub const SCHEMA_PAGES_MAX: usize = 2_048;

/// Tables in one page of summaries for the coordinator: about 150 bytes each.
pub const SUMMARY_PAGE: usize = 5_000;

/// Bytes of text after which a page of a schema ends. With one more table of maximal columns it
/// still fits a control frame.
pub const SCHEMA_PAGE_BYTES: usize = 512 * 1024;

/// COPY bytes in one chunk before compression: large enough to make the cost per chunk negligible,
/// small enough that 16 workers hold a few MiB each way.
pub const CHUNK_RAW_MAX: usize = 256 * 1024;

/// Bytes of one chunk on the wire. A chunk that compression would lengthen is sent raw, but a stored
/// part never mixes formats: there, such a chunk is a frame that is a little longer than its content.
pub const CHUNK_WIRE_MAX: usize = CHUNK_RAW_MAX + 1024;

/// Unacknowledged and unread bytes of one stream. Beyond about 2 MiB, a lossy path causes so many
/// gaps that quinn drops the connection; many streams fill a long path instead.
pub const STREAM_WINDOW: u32 = 1024 * 1024;

/// The longest reason in a refusal, in bytes.
pub const REFUSAL_REASON_MAX: usize = 1024;

/// Snapshots of one job after its first. A job that starts over gets at most five by itself, and five more each time an
/// operator resumes it.
pub const EPOCHS_MAX: u32 = 64;

/// Parts of one job. At the smallest range size this is far beyond PostgreSQL's 32 TB per table.
pub const PARTS_MAX: u32 = 4_000_000;

/// Names listed in a preflight finding or in facts; more are only counted.
pub const LISTED_MAX: usize = 100;

/// Sequences named in a warning; more are only counted.
pub const SEQUENCES_NAMED: usize = 10;

/// Samples of one job's progress that are kept and shown: one every ten seconds for an hour, and as
/// many for all the time before.
pub const SAMPLES_MAX: usize = 720;

/// Workers of one job, the upper bound of `--parallel`.
pub const WORKERS_MAX: u8 = 16;

/// Targets of one shared snapshot.
pub const PEERS_MAX: usize = 64;

/// Parts of a shared snapshot that a target offers its source to choose from.
pub const WANTED_MAX: usize = 32;

/// Peers that such a request names: their names fill half of [`PEER_REQUEST_MAX`].
pub const ASKED_MAX: usize = 32;

/// Parts of a shared snapshot that a target says it has received, in one message.
pub const RECEIVED_MAX: usize = 256;

/// Workers of a job by default.
pub const WORKERS_DEFAULT: u8 = 4;

/// Events sent to a watcher at the start: some screens full.
pub const RECENT_EVENTS: u32 = 200;

/// Tables in the view of one job, which is sent every second while somebody watches.
pub const TABLES_SHOWN: usize = 100;

/// Tables in the report's list of the slowest.
pub const SLOWEST_TABLES: usize = 10;

/// Lock conflicts in one report of an agent.
pub const LOCK_CONFLICTS_MAX: usize = 20;

/// Tables of one comparison of rows.
pub const VERIFY_TABLES_MAX: usize = 50_000;

/// Bytes of the tables that an interrupted comparison has done: with names of other tables, they fit an operator's
/// request.
pub const VERIFY_DONE_MAX: usize = 128 * 1024;

/// Rows in one answer, and keys in one question, of a comparison of rows: with keys as long as an index
/// allows (2.7 kB), they fit a control frame.
pub const VERIFY_ROWS_MAX: usize = 4_000;

/// Rows that differ and are shown, for each table.
pub const VERIFY_EXAMPLES: usize = 100;

/// The same over all tables.
pub const VERIFY_EXAMPLES_ALL: usize = 2_000;

/// Columns of rows in one answer: with their values, 8 MB.
pub const VERIFY_CELLS: usize = 10_000;

/// Columns named of a table in whose rows they differ: the report's size is bounded by it and by
/// [`VERIFY_COLUMNS_ALL`].
pub const VERIFY_COLUMNS: usize = 100;

/// The same of all tables.
pub const VERIFY_COLUMNS_ALL: usize = 5_000;

/// Characters shown of a column's value.
pub const VERIFY_VALUE_SHOWN: usize = 200;

/// Bits of a bucket's number in a comparison of rows: the sums of all buckets of a range, 44 bytes each, are
/// 1.4 MB.
pub const VERIFY_BITS_MAX: u8 = 15;

/// Sequences that a merge sets apart: with names of full length they fit a control frame.
pub const SEQUENCES_MAX: usize = 50_000;

/// Rows that a plan of a repair has at most. Where more differ, copying these tables anew is faster.
pub const REPAIR_ROWS_MAX: usize = 100_000;

/// Bytes of such a plan: beside the longest report of a comparison, it fits a control frame.
pub const REPAIR_BYTES_MAX: usize = 6 * 1024 * 1024;

/// Rows in one page of a plan that is applied: some seconds of work.
pub const REPAIR_PAGE_ROWS: usize = 1_000;

/// About the bytes of such a page: with the names of a table's columns and one more row, it fits an operator's
/// request.
pub const REPAIR_PAGE_BYTES: usize = 100 * 1024;

/// The longest key of a row that is repaired, in bytes.
pub const REPAIR_KEY_MAX: usize = 32 * 1024;

/// Rows whose values are asked for at once.
pub const REPAIR_ROWS_AT_ONCE: usize = 200;

/// The longest row that is repaired, as text, in bytes: the values of one question fit a control frame.
pub const REPAIR_ROW_MAX: usize = 8 * 1024 * 1024;

/// Characters shown of another session's statement.
pub const STATEMENT_SHOWN: usize = 200;
