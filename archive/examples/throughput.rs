//! Measures a store: `cargo run --release -p steep-archive --example throughput -- LOCATION [MIB] [CODEC] [KEY]`.
//!
//! Packs the same rows again and again on four tasks, writes them as a snapshot, reads it, verifies it and
//! deletes it. Prints megabytes of COPY data per second. With a key file, the snapshot is encrypted.

use std::time::{Duration, Instant};

use steep_archive::chunk::Packer;
use steep_archive::{
    Archive, Contents, Finished, Identity, Keys, Location, PlannedTable, Source, Writing,
};
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::stored::StoredCodec;
use steep_protocol::{Identifier, Lsn, NodeId, PartNo, RowCount, SnapshotId, TableName};

const PARTS: u32 = 4;

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn rows() -> Vec<u8> {
    let mut text = Vec::new();
    let mut state = 7u64;
    while text.len() < 4 * CHUNK_RAW_MAX {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let line = format!(
            "{}\t{}\tcustomer of region {}\t\\N\n",
            state >> 54,
            state >> 30 & 0xF_FFFF,
            state >> 20 & 15
        );
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(4 * CHUNK_RAW_MAX);
    text
}

fn speed(what: &str, bytes: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!("{what:8} {:6.0} MB/s", bytes as f64 / 1e6 / seconds);
}

async fn write_part(writing: Writing, no: PartNo, chunks: u64) -> Result<Duration, Failed> {
    let text = rows();
    let lines = text.iter().filter(|b| **b == b'\n').count() as u64;
    let mut packer = Packer::stored(writing.codec());
    let mut part = writing.part(no).await?;
    let mut packing = Duration::ZERO;
    for chunk in text
        .chunks(CHUNK_RAW_MAX)
        .cycle()
        .take(usize::try_from(chunks)?)
    {
        let since = Instant::now();
        let (head, payload) = packer.pack(&mut chunk.to_vec())?;
        packing += since.elapsed();
        part.chunk(head, &payload).await?;
    }
    part.finish(RowCount(lines * chunks / 4)).await?;
    Ok(packing)
}

async fn read_part(archive: Archive, no: PartNo) -> Result<(), Failed> {
    let mut reader = archive.part(no).await?;
    while reader.next().await?.is_some() {}
    Ok(())
}

fn contents() -> Result<Contents, Failed> {
    Ok(Contents {
        created_at: "2026-01-01T00:00:00Z".parse()?,
        source: Source {
            node_id: NodeId::parse("bench")?,
            system_identifier: "1".to_owned(),
            server_version: 170_000,
            database: Identifier::parse("bench")?,
            encoding: "UTF8".to_owned(),
        },
        slot_name: Identifier::parse("bench")?,
        publication: Identifier::parse("bench")?,
        include_schemas: Vec::new(),
        exclude_tables: Vec::new(),
        tables: vec![PlannedTable {
            name: TableName::new("public", "bench")?,
            columns: Vec::new(),
            parts: (0..PARTS).map(PartNo).collect(),
        }],
    })
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let location = Location::parse(&arguments.next().ok_or("name a location")?)?;
    let mib: u64 = arguments.next().map_or(Ok(1024), |mib| mib.parse())?;
    let codec: StoredCodec = arguments
        .next()
        .map_or(Ok(StoredCodec::Lz4), |codec| codec.parse())?;
    let keys = match arguments.next() {
        Some(file) => Keys::load(file.as_ref())?,
        None => Keys::default(),
    };
    let chunks = (mib * 4 / u64::from(PARTS)).next_multiple_of(4);
    let bytes = chunks * u64::from(PARTS) * CHUNK_RAW_MAX as u64;
    let snapshot_id = SnapshotId(1);

    let since = Instant::now();
    let identity = Identity {
        snapshot_id,
        node_id: NodeId::parse("bench")?,
        lsn: Lsn(1),
        codec,
        encryption: keys.facts().map(|facts| facts.encrypts.clone()),
    };
    let writing = Archive::create(&location, identity, &keys, &Finished::default()).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for no in (0..PARTS).map(PartNo) {
        tasks.spawn(write_part(writing.clone(), no, chunks));
    }
    let mut packing = Duration::ZERO;
    while let Some(done) = tasks.join_next().await {
        packing += done??;
    }
    writing.schema(b"", b"").await?;
    writing.sequences(&[]).await?;
    let manifest = writing.finish(contents()?).await?;
    drop(writing);
    speed("write", bytes, since);
    println!(
        "         {:.1} s of packing on all tasks; stored {} MB",
        packing.as_secs_f64(),
        manifest.totals.stored_bytes.0 / 1_000_000
    );

    let archive = Archive::open(&location, &keys).await?;
    let since = Instant::now();
    println!("presence {:?}", archive.check_presence().await?);
    println!("         {:.3} s", since.elapsed().as_secs_f64());
    let since = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for no in (0..PARTS).map(PartNo) {
        tasks.spawn(read_part(archive.clone(), no));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    speed("read", bytes, since);
    let since = Instant::now();
    let verified = archive.verify(PARTS as usize, |_| ()).await?;
    speed("verify", bytes, since);
    println!("problems {:?}", verified.problems);
    drop(archive);
    println!("{:?}", Archive::delete(&location, snapshot_id).await?);
    Ok(())
}
