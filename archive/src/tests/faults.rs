use std::fs;

use steep_protocol::frame::HEAD_LENGTH;

use super::*;
use crate::error::ProblemKind;

#[tokio::test]
async fn each_wrong_file_is_named_with_what_is_wrong() {
    type Harm = fn(&Path);
    // What is done, what a cheap look finds, what a full one finds.
    let cases: &[(Harm, &[&str], &[&str])] = &[
        (
            |at| fs::remove_file(at.join("parts/0000001.copy.lz4")).unwrap(),
            &["parts/0000001.copy.lz4 is missing"],
            &["parts/0000001.copy.lz4 is missing"],
        ),
        (
            |at| fs::remove_file(at.join("parts/0000001.index")).unwrap(),
            &["parts/0000001.index is missing"],
            &["parts/0000001.index is missing"],
        ),
        (
            |at| truncate(&at.join("parts/0000000.copy.lz4"), 1),
            &["parts/0000000.copy.lz4 is truncated"],
            &["parts/0000000.copy.lz4 is truncated"],
        ),
        (
            |at| truncate(&at.join("parts/0000000.index"), 44),
            &["parts/0000000.index is truncated"],
            &["parts/0000000.index is truncated"],
        ),
        (
            |at| flip(&at.join("parts/0000000.copy.lz4"), |_| 300_000),
            &[],
            &["parts/0000000.copy.lz4 is damaged: chunk"],
        ),
        (
            |at| flip(&at.join("parts/0000000.index"), |_| 0),
            &["parts/0000000.index is damaged: frame kind 0"],
            &["parts/0000000.index is damaged"],
        ),
        (
            |at| {
                swap(
                    &at.join("parts/0000000.index"),
                    &at.join("parts/0000001.index"),
                );
            },
            &[
                "parts/0000000.index is swapped: its content is that of parts/0000001.index",
                "parts/0000001.index is swapped: its content is that of parts/0000000.index",
            ],
            &[
                "parts/0000000.index is swapped",
                "parts/0000001.index is swapped",
            ],
        ),
        (
            |at| {
                swap(
                    &at.join("parts/0000000.copy.lz4"),
                    &at.join("parts/0000001.copy.lz4"),
                );
            },
            &[
                "parts/0000000.copy.lz4 is swapped: its content is that of parts/0000001.copy.lz4",
                "parts/0000001.copy.lz4 is swapped",
            ],
            &[
                "parts/0000000.copy.lz4 is swapped",
                "parts/0000001.copy.lz4 is swapped",
            ],
        ),
        (
            |at| flip(&at.join("schema.sql"), |_| 100),
            &["schema.sql is damaged"],
            &["schema.sql is damaged"],
        ),
        (
            |at| truncate(&at.join("sequences.json"), 1),
            &["sequences.json is truncated"],
            &["sequences.json is truncated"],
        ),
        (
            |at| {
                fs::rename(at.join("parts/0000001.copy.lz4"), at.join("x")).unwrap();
                std::os::unix::fs::symlink(at.join("x"), at.join("parts/0000001.copy.lz4"))
                    .unwrap();
            },
            &["parts/0000001.copy.lz4 is not a regular file"],
            &["parts/0000001.copy.lz4 is not a regular file"],
        ),
    ];
    for (case, (harm, cheap, full)) in cases.iter().enumerate() {
        let (_dir, location, path) = sample(StoredCodec::Lz4).await;
        harm(&path);
        let (present, verified) = problems(&location, &Keys::default()).await;
        for (found, expected) in [(present, cheap), (verified, full)] {
            let matches = found.len() == expected.len()
                && found.iter().zip(*expected).all(|(f, e)| f.starts_with(e));
            assert!(
                matches,
                "case {case}: {found:#?} where {expected:#?} was expected"
            );
        }
    }
}

#[tokio::test]
async fn a_file_that_is_longer_than_its_manifest_says_is_not_read() {
    let (_dir, location, path) = sample(StoredCodec::Lz4).await;
    let schema = fs::File::options()
        .write(true)
        .open(path.join("schema.sql"));
    // Sparse: reading it would fill the memory.
    schema.unwrap().set_len(400 << 20).unwrap();
    let (present, verified) = problems(&location, &Keys::default()).await;
    for found in [present, verified] {
        let [found] = &found[..] else {
            panic!("{found:?}")
        };
        assert!(
            found.starts_with("schema.sql is damaged: it has 419430400 bytes, and"),
            "{found}"
        );
    }
}

/// All that an index says fits, but for one bit of a digest.
#[tokio::test]
async fn an_index_with_a_changed_digest_is_damaged_and_no_other_parts() {
    let (_dir, location, path) = sample(StoredCodec::Lz4).await;
    flip(&path.join("parts/0000000.index"), |_| HEAD_LENGTH - 1);
    let expected = "parts/0000000.index is damaged: it is not the one that was written";
    let (present, verified) = problems(&location, &Keys::default()).await;
    assert_eq!(present, [expected]);
    assert_eq!(verified, [expected]);
}

#[tokio::test]
async fn a_part_of_another_snapshot_is_foreign() {
    let (_dir, location, path) = sample(StoredCodec::Lz4).await;
    let (_other_dir, other, other_path) = directory();
    let writing = create(&other, identity(StoredCodec::Lz4), &Keys::default())
        .await
        .unwrap();
    write_part(&writing, 0, &rows(9, 600_000)).await.unwrap();
    for file in ["parts/0000000.index", "parts/0000000.copy.lz4"] {
        fs::copy(other_path.join(file), path.join(file)).unwrap();
    }
    let (present, _) = problems(&location, &Keys::default()).await;
    let foreign = "parts/0000000.index is from another snapshot";
    assert!(
        present.iter().any(|p| p.starts_with(foreign)),
        "{present:#?}"
    );
    let error = read_part(
        &Archive::open(&location, &Keys::default()).await.unwrap(),
        0,
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains(foreign), "{error}");
}

#[tokio::test]
async fn a_manifest_of_another_snapshot_or_a_damaged_one_is_refused() {
    let (_dir, location, path) = sample(StoredCodec::None).await;
    let claim = fs::read_to_string(path.join("snapshot.json")).unwrap();
    let foreign = claim.replace("000000000000abcd", "000000000000abce");
    assert_ne!(claim, foreign);
    fs::write(path.join("snapshot.json"), foreign).unwrap();
    let error = Archive::open(&location, &Keys::default())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("manifest.json is from another snapshot"),
        "{error}"
    );

    // The claim says how the files are read, as the manifest does.
    for (other, said) in [
        (claim.replace("\"none\"", "\"lz4\""), "that they are none"),
        (
            claim.replace("16/B374D848", "16/B374D849"),
            "at 16/B374D849",
        ),
        (claim.replace("node_a", "node_b"), "of node_b"),
    ] {
        assert_ne!(claim, other);
        fs::write(path.join("snapshot.json"), other).unwrap();
        let error = Archive::open(&location, &Keys::default()).await;
        let shown = error.unwrap_err().to_string();
        assert!(shown.contains("snapshot.json is damaged"), "{shown}");
        assert!(shown.contains(said), "{shown}");
    }

    fs::write(path.join("snapshot.json"), claim).unwrap();
    flip(&path.join("manifest.json"), |_| 700);
    let error = Archive::open(&location, &Keys::default())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("manifest.json is damaged"),
        "{error}"
    );

    fs::remove_file(path.join("manifest.json")).unwrap();
    let error = Archive::open(&location, &Keys::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Incomplete { .. }), "{error}");
}

#[tokio::test]
async fn symbolic_links_and_pipes_lead_nowhere() {
    for name in ["manifest.json", "snapshot.json"] {
        let (dir, location, path) = sample(StoredCodec::None).await;
        fs::rename(path.join(name), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), path.join(name)).unwrap();
        let error = Archive::open(&location, &Keys::default())
            .await
            .unwrap_err();
        let expected = matches!(&error, Error::Problem { problem, .. } if problem.kind == ProblemKind::NotAFile);
        assert!(expected, "{error}");
    }
    let (dir, location, path) = sample(StoredCodec::None).await;
    fs::rename(path.join("parts"), dir.path().join("parts")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("parts"), path.join("parts")).unwrap();
    let archive = Archive::open(&location, &Keys::default()).await.unwrap();
    assert!(read_part(&archive, 0).await.is_err());

    let (_dir, location, path) = sample(StoredCodec::None).await;
    fs::remove_file(path.join("manifest.json")).unwrap();
    let pipe = path.join("manifest.json");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(
        Archive::open(&location, &Keys::default()).await.is_err(),
        "a pipe is not waited for"
    );
}

#[tokio::test]
async fn a_manifest_that_is_too_long_is_not_read() {
    let (_dir, location, path) = sample(StoredCodec::None).await;
    let file = fs::File::options()
        .write(true)
        .open(path.join("manifest.json"))
        .unwrap();
    file.set_len(crate::manifest::MANIFEST_MAX + 1).unwrap();
    let error = Archive::open(&location, &Keys::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("at most"), "{error}");
}

#[tokio::test]
async fn a_manifest_with_too_many_values_is_not_read() {
    let (_dir, location, path) = sample(StoredCodec::None).await;
    let values = "\"a\",".repeat(8_000_001);
    let manifest = path.join("manifest.json");
    let columns = format!("{{\"tables\":[{{\"columns\":[{values}\"a\"]}}]}}");
    fs::write(manifest, columns).unwrap();
    let error = Archive::open(&location, &Keys::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("at most 8000000"), "{error}");
}

/// A snapshot whose files match its manifest, but whose chunk is not what its head says.
#[tokio::test]
async fn a_bomb_and_wrong_row_counts_are_found() {
    use steep_protocol::frame::FrameHead;
    let (_dir, location, _) = directory();
    let writing = create(&location, identity(StoredCodec::Zstd(3)), &Keys::default())
        .await
        .unwrap();
    let payload = zstd::bulk::compress(&vec![0; 100_000_000], 3).unwrap();
    let head = FrameHead::Chunk {
        packing: steep_protocol::frame::Packing::Zstd,
        raw: 1000,
        wire: u32::try_from(payload.len()).unwrap(),
        digest: *blake3::hash(&payload).as_bytes(),
    };
    let mut part = writing.part(PartNo(0)).await.unwrap();
    part.chunk(head, &payload).await.unwrap();
    part.finish(RowCount(0)).await.unwrap();
    let mut part = writing.part(PartNo(1)).await.unwrap();
    let (head, payload) = Packer::stored(StoredCodec::Zstd(3))
        .pack(&mut rows(1, 100))
        .unwrap();
    part.chunk(head, &payload).await.unwrap();
    part.finish(RowCount(1)).await.unwrap();
    write_rest(&writing, &[0, 1]).await.unwrap();
    drop(writing);
    let (present, verified) = problems(&location, &Keys::default()).await;
    assert!(present.is_empty());
    assert!(verified[0].contains("does not unpack"), "{verified:#?}");
    assert!(
        verified[1].contains("rows where the manifest says 1"),
        "{verified:#?}"
    );
    assert_eq!(verified.len(), 2);
}

#[tokio::test]
async fn a_full_disk_is_a_full_disk() {
    let full = crate::place::tests::full(&Location::Directory("/a".into()));
    assert!(full.is_full() && !full.may_pass(), "{full}");
}
