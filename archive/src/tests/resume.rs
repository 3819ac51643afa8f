use std::fs;

use super::*;

#[tokio::test]
async fn a_killed_writer_leaves_nothing_that_looks_complete() {
    let (_dir, location, path) = directory();
    let writing = create(&location, identity(StoredCodec::Lz4), &Keys::default())
        .await
        .unwrap();
    write_part(&writing, 0, &rows(1, 300_000)).await.unwrap();
    let (head, payload) = Packer::stored(StoredCodec::Lz4)
        .pack(&mut rows(2, 100_000))
        .unwrap();
    let mut part = writing.part(PartNo(1)).await.unwrap();
    for _ in 0..50 {
        part.chunk(head, &payload).await.unwrap();
    }
    drop((part, writing));
    let kept = [
        "parts/0000000.copy.lz4",
        "parts/0000000.index",
        "snapshot.json",
    ];
    assert_eq!(files(&path), kept, "a dropped part removes its files");
    let error = Archive::open(&location, &Keys::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Incomplete { .. }), "{error}");
}

#[tokio::test]
async fn whole_parts_are_kept_and_broken_ones_are_not() {
    let (_dir, location, path) = directory();
    let (finished, keys) = (Finished::default(), Keys::default());
    let begin = || Archive::create(&location, identity(StoredCodec::Lz4), &keys, &finished);
    let writing = begin().await.unwrap();
    let mut whole = Vec::new();
    for no in 0..8 {
        let text = rows(no.into(), 300_000);
        whole.push(write_part(&writing, no, &text).await.unwrap());
    }
    drop(writing);
    let at = |file: &str| path.join("parts").join(file);
    // Cut, changed, without its index, without its data, with another's index, of another codec.
    truncate(&at("0000001.copy.lz4"), 10);
    flip(&at("0000002.copy.lz4"), |length| length / 2);
    fs::remove_file(at("0000003.index")).unwrap();
    fs::remove_file(at("0000004.copy.lz4")).unwrap();
    fs::copy(at("0000000.index"), at("0000005.index")).unwrap();
    fs::rename(at("0000006.copy.lz4"), at("0000006.copy.zst")).unwrap();
    fs::write(at(".0000009.copy.lz4.tmp"), "unfinished").unwrap();

    let writing = begin().await.unwrap();
    let kept = writing.kept(3).await.unwrap();
    assert_eq!(kept, [whole[0], whole[7]]);
    assert_eq!(files(&path).len(), 5, "{:?}", files(&path));
    for no in 1..7 {
        let text = rows(no.into(), 300_000);
        write_part(&writing, no, &text).await.unwrap();
    }
    // A part that is no longer planned is removed.
    write_rest(&writing, &[0, 1, 2, 3, 4, 5, 6]).await.unwrap();
    drop(writing);
    assert_eq!(files(&path).len(), 14 + 4);
    let archive = Archive::open(&location, &keys).await.unwrap();
    assert_eq!(archive.verify(2, |_| ()).await.unwrap().problems, []);
}

/// Whoever can write to the place, which may be a bucket, writes parts that are whole: rows of their own, with an index
/// that fits. The recipient of an encrypted snapshot is no secret.
#[tokio::test]
async fn parts_that_somebody_else_has_put_there_are_removed_however_whole_they_are() {
    let key = keys(&new_key());
    for keys in [Keys::default(), keys(&recipient(&key)), key] {
        let (_dir, location, path) = directory();
        let (finished, identity) = (Finished::default(), || {
            identity_with(StoredCodec::None, &keys)
        });
        let begin = || Archive::create(&location, identity(), &keys, &finished);
        let writing = begin().await.unwrap();
        let mut own = Vec::new();
        let text = rows(1, 300_000);
        for no in 0..3 {
            own.push(write_part(&writing, no, &text).await.unwrap());
        }
        drop(writing);
        // Of the same length, as long as it is not encrypted; and a part that was not written yet.
        let mut other = text.clone();
        other[0] = if other[0] == b'1' { b'2' } else { b'1' };
        let (_forged_dir, forged_location, forged) = directory();
        let forging = create(&forged_location, identity(), &keys).await.unwrap();
        for no in [1, 3] {
            write_part(&forging, no, &other).await.unwrap();
        }
        for file in files(&forged) {
            if file.starts_with("parts/") {
                fs::copy(forged.join(&file), path.join(&file)).unwrap();
            }
        }
        let writing = begin().await.unwrap();
        assert_eq!(writing.kept(2).await.unwrap(), [own[0], own[2]], "{keys:?}");
        assert_eq!(files(&path).len(), 5, "{:?}", files(&path));
        assert!(!writing.has(PartNo(1)) && !writing.has(PartNo(3)));
        drop(writing);
        // Another process remembers nothing.
        let writing = create(&location, identity(), &keys).await.unwrap();
        assert_eq!(writing.kept(2).await.unwrap(), []);
        assert_eq!(files(&path), ["snapshot.json"]);
    }
}

#[tokio::test]
async fn a_manifest_that_somebody_else_has_written_is_told_from_ours() {
    let (_dir, location, path) = sample(StoredCodec::None).await;
    let (_own_dir, own_location, own) = directory();
    let (finished, keys) = (Finished::default(), Keys::default());
    let identity = || identity(StoredCodec::None);
    let begin = || Archive::create(&own_location, identity(), &keys, &finished);
    let writing = begin().await.unwrap();
    write_part(&writing, 0, &rows(1, 100)).await.unwrap();
    let manifest = write_rest(&writing, &[0]).await.unwrap();
    assert!(finished.is_sealed_by(&manifest));
    let forged = Archive::open(&location, &keys).await.unwrap();
    assert_eq!(forged.manifest().snapshot_id, manifest.snapshot_id);
    assert!(!finished.is_sealed_by(forged.manifest()));
    assert!(!Finished::default().is_sealed_by(&manifest));
    drop(writing);
    fs::copy(path.join("manifest.json"), own.join("manifest.json")).unwrap();
    let error = begin().await.unwrap_err();
    assert!(
        matches!(error, Error::Complete { found: Some(_), .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_place_belongs_to_one_snapshot_and_one_process() {
    let (_dir, location, path) = directory();
    let codec = StoredCodec::Lz4;
    let writing = create(&location, identity(codec), &Keys::default())
        .await
        .unwrap();
    let locked = create(&location, identity(codec), &Keys::default())
        .await
        .unwrap_err();
    assert!(
        matches!(locked, Error::Locked { .. }) && locked.may_pass(),
        "{locked}"
    );
    drop(writing);
    for other in [
        Identity {
            snapshot_id: SnapshotId(1),
            ..identity(codec)
        },
        Identity {
            lsn: steep_protocol::Lsn(1),
            ..identity(codec)
        },
        identity(StoredCodec::Gzip),
    ] {
        let error = create(&location, other, &Keys::default())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
    }
    let writing = create(&location, identity(codec), &Keys::default())
        .await
        .unwrap();
    write_rest(&writing, &[]).await.unwrap();
    drop(writing);
    let error = create(&location, identity(codec), &Keys::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Complete { .. }), "{error}");
    fs::remove_file(path.join("manifest.json")).unwrap();
    fs::remove_file(path.join("snapshot.json")).unwrap();
    let error = create(&location, identity(codec), &Keys::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
}

#[tokio::test]
async fn a_snapshot_without_all_its_parts_is_not_finished() {
    let (_dir, location, _) = directory();
    let writing = create(&location, identity(StoredCodec::None), &Keys::default())
        .await
        .unwrap();
    write_part(&writing, 0, &rows(1, 100)).await.unwrap();
    let error = write_rest(&writing, &[0, 1]).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("part 1 of public.orders was not written"),
        "{error}"
    );
    let error = writing.part(PartNo(u32::MAX)).await.unwrap_err();
    assert!(matches!(error, Error::Misuse { .. }), "{error}");
}

#[tokio::test]
async fn a_place_is_vacant_if_nothing_of_a_snapshot_is_there() {
    let (dir, location, path) = directory();
    Archive::check_vacant(&location).await.unwrap();
    assert_eq!(files(&path), Vec::<String>::new());
    let keys = Keys::default();
    let writing = create(&location, identity(StoredCodec::None), &keys).await;
    let writing = writing.unwrap();
    let locked = Archive::check_vacant(&location).await.unwrap_err();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
    drop(writing);
    let claimed = Archive::check_vacant(&location).await.unwrap_err();
    let expected = Some(SnapshotId(0xABCD));
    assert!(matches!(claimed, Error::Occupied { found, .. } if found == expected));
    let (_dir, complete, path) = sample(StoredCodec::None).await;
    let error = Archive::check_vacant(&complete).await.unwrap_err();
    assert!(matches!(error, Error::Complete { found, .. } if found == expected));
    for file in ["manifest.json", "snapshot.json"] {
        fs::remove_file(path.join(file)).unwrap();
    }
    let unknown = Archive::check_vacant(&complete).await.unwrap_err();
    assert!(unknown.to_string().contains("unknown"), "{unknown}");
    // A file is no directory.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let wrong = Archive::check_vacant(&Location::Directory(file.join("below"))).await;
    assert!(!wrong.unwrap_err().may_pass());
}
