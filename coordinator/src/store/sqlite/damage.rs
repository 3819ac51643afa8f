//! Tests of stores that were killed at a write, are damaged, or are not ours.

use std::fs;
use std::path::Path;

use super::tests::event;
use super::*;
use crate::drive::Driver;
use crate::job::COMMANDS_PER_JOB;
use crate::job::health::Bounds;
use crate::testing;

const WAL: &str = "coordinator.db-wal";

/// SQLite's manual, "WAL-mode File Format".
const WAL_HEADER: usize = 32;
const FRAME: usize = 24 + 4096;

/// A directory with these files.
fn directory(file: &[u8], wal: &[u8]) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [(FILE, file), (WAL, wal)] {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    directory
}

fn read(directory: &Path, name: &str) -> Vec<u8> {
    fs::read(directory.join(name)).unwrap_or_default()
}

/// The store as a coordinator that starts finds it, which can go on with it.
fn starts_with(file: &[u8], wal: &[u8]) -> Loaded {
    let directory = directory(file, wal);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let loaded = load(&mut store);
    store.apply(&[Write::NextCommand(1 << 50)]).unwrap();
    drop(store);
    let store = SqliteStore::open(directory.path()).unwrap();
    Driver::new(store, Bounds::default()).unwrap();
    loaded
}

/// What is stored, but for the time at which it was made.
fn load(store: &mut SqliteStore) -> Loaded {
    let mut loaded = store.load().unwrap();
    loaded.next_command %= COMMANDS_PER_JOB;
    loaded
}

/// A store that its coordinator has not closed: file, WAL, and the states that it has been in.
fn killed() -> (Vec<u8>, Vec<u8>, Vec<Loaded>) {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let mut states = vec![load(&mut store)];
    for i in 1..=6 {
        let mut node = NodeRecord::new(testing::node("b"));
        node.error_message = Some("why ".repeat(400 * i as usize));
        let writes = [
            Write::Node(Box::new(node)),
            Write::Event(event(i, "b")),
            Write::NextCommand(1 + i),
        ];
        store.apply(&writes).unwrap();
        states.push(load(&mut store));
    }
    let path = directory.path();
    (read(path, FILE), read(path, WAL), states)
}

#[test]
fn a_kill_at_any_write_leaves_an_earlier_state_whole() {
    let (file, wal, states) = killed();
    let frames = (wal.len() - WAL_HEADER) / FRAME;
    assert!(frames > 20, "{frames}");
    let mut last = 0;
    for frame in 0..=frames {
        let whole = WAL_HEADER + frame * FRAME;
        for cut in [whole, whole + FRAME / 2, whole + FRAME - 1] {
            // Torn frames look alike.
            if cut > wal.len() || cut != whole && frame % 5 != 0 {
                continue;
            }
            let found = starts_with(&file, &wal[..cut]);
            let state = states.iter().position(|state| *state == found);
            let state = state.unwrap_or_else(|| panic!("cut at {cut}: {found:?}"));
            assert!(state >= last, "cut at {cut}: {state} after {last}");
            last = state;
        }
    }
    assert_eq!(last, states.len() - 1, "everything applied is there");
}

#[test]
fn a_kill_while_the_wal_moves_into_the_file_loses_nothing() {
    let (file, wal, states) = killed();
    let moved = directory(&file, &wal);
    drop(SqliteStore::open(moved.path()).unwrap());
    let after = read(moved.path(), FILE);
    for pages in [0, 1, 2, 5, after.len() / 4096] {
        let mut torn = after[..pages * 4096].to_vec();
        torn.extend(file.get(torn.len()..).unwrap_or_default());
        assert_eq!(starts_with(&torn, &wal), states[states.len() - 1]);
    }
}

/// Refuses the store, says what is in `why` and where, and changes nothing.
fn refused(file: &[u8], wal: &[u8], why: &str) {
    let directory = directory(file, wal);
    let error = SqliteStore::open(directory.path()).unwrap_err().to_string();
    let place = directory.path().join(FILE).display().to_string();
    for said in [why, place.as_str(), "It was not changed"] {
        assert!(error.contains(said), "{said:?} is not in: {error}");
    }
    assert!(read(directory.path(), FILE) == file, "{error}");
    assert!(read(directory.path(), WAL) == wal, "{error}");
}

/// A store that was closed, with several hundred pages.
fn closed() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let events: Vec<Write> = (1..=3000).map(|i| Write::Event(event(i, "b"))).collect();
    store.apply(&events).unwrap();
    drop(store);
    read(directory.path(), FILE)
}

/// A database of SQLite after those statements: file and WAL.
fn database(sql: &str) -> (Vec<u8>, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join(FILE)).unwrap();
    connection.execute_batch(sql).unwrap();
    (read(directory.path(), FILE), read(directory.path(), WAL))
}

#[test]
fn what_is_no_store_is_refused_and_stays_as_it_is() {
    refused(b"host=db user=steep\n", b"", "it is no SQLite database");
    let accounts = "CREATE TABLE accounts (id); INSERT INTO accounts VALUES (1);";
    for more in [
        "",
        "PRAGMA user_version = 3",
        "PRAGMA application_id = 7",
        "PRAGMA journal_mode = wal; CREATE TABLE t (a)",
    ] {
        let (file, wal) = database(&format!("{accounts} {more}"));
        refused(&file, &wal, "another program's SQLite database");
    }
    let (file, wal) = database("PRAGMA user_version = 2");
    refused(&file, &wal, "another program's SQLite database");
}

#[test]
fn a_damaged_store_is_refused_and_stays_as_it_is() {
    let whole = closed();
    assert!(whole.len() > 100 * 4096);
    let mut page = whole.clone();
    page[50 * 4096..51 * 4096].fill(0xa5);
    refused(&page, b"", "damaged");
    refused(&whole[..whole.len() / 2], b"", "damaged");
    let mut beginning = whole.clone();
    beginning[..100].fill(0);
    refused(&beginning, b"", "its beginning is damaged");
    let mut tables = whole;
    tables[100..4096].fill(0);
    refused(&tables, b"", "");
}

#[test]
fn a_newer_store_is_refused_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let newer = store.connection.pragma_update(None, "user_version", 99);
    newer.unwrap();
    let path = directory.path();
    refused(&read(path, FILE), &read(path, WAL), "schema version 99");
}

#[test]
fn an_older_store_has_no_mark_and_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let older = "PRAGMA application_id = 0; PRAGMA user_version = 5; DROP TABLE forgotten_snapshots; \
         DROP TABLE switchovers";
    store.connection.execute_batch(older).unwrap();
    drop(store);
    let store = SqliteStore::open(directory.path()).unwrap();
    let mark = store
        .connection
        .pragma_query_value(None, "application_id", |row| row.get(0));
    assert_eq!(mark, Ok(i64::from(u32::from_be_bytes(*b"stRP"))));
}
