use std::fs;

use super::*;

#[tokio::test]
async fn a_killed_writer_leaves_nothing_that_looks_complete() {
    let (_dir, location, path) = directory();
    let writing = Archive::create(&location, identity(StoredCodec::Lz4), &Keys::default())
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
    let writing = Archive::create(&location, identity(StoredCodec::Lz4), &Keys::default())
        .await
        .unwrap();
    let mut whole = Vec::new();
    for no in 0..8 {
        whole.push(
            write_part(&writing, no, &rows(no.into(), 300_000))
                .await
                .unwrap(),
        );
    }
    drop(writing);
    let at = |file: &str| path.join("parts").join(file);
    // Cut, changed, without its index, without its data, with another's index, of another codec.
    let cut = fs::File::options()
        .write(true)
        .open(at("0000001.copy.lz4"))
        .unwrap();
    cut.set_len(100_000).unwrap();
    let mut changed = fs::read(at("0000002.copy.lz4")).unwrap();
    changed[50_000] ^= 1;
    fs::write(at("0000002.copy.lz4"), changed).unwrap();
    fs::remove_file(at("0000003.index")).unwrap();
    fs::remove_file(at("0000004.copy.lz4")).unwrap();
    fs::copy(at("0000000.index"), at("0000005.index")).unwrap();
    fs::rename(at("0000006.copy.lz4"), at("0000006.copy.zst")).unwrap();
    fs::write(at(".0000009.copy.lz4.tmp"), "unfinished").unwrap();

    let writing = Archive::create(&location, identity(StoredCodec::Lz4), &Keys::default())
        .await
        .unwrap();
    let kept = writing.kept(3).await.unwrap();
    assert_eq!(kept, [whole[0], whole[7]]);
    assert_eq!(files(&path).len(), 5, "{:?}", files(&path));
    for no in 1..7 {
        write_part(&writing, no, &rows(no.into(), 300_000))
            .await
            .unwrap();
    }
    // A part that is no longer planned is removed.
    write_rest(&writing, &[0, 1, 2, 3, 4, 5, 6]).await.unwrap();
    drop(writing);
    assert_eq!(files(&path).len(), 14 + 4);
    let archive = Archive::open(&location, &Keys::default()).await.unwrap();
    assert_eq!(archive.verify(2, |_| ()).await.unwrap().problems, []);
}

#[tokio::test]
async fn a_place_belongs_to_one_snapshot_and_one_process() {
    let (_dir, location, path) = directory();
    let codec = StoredCodec::Lz4;
    let writing = Archive::create(&location, identity(codec), &Keys::default())
        .await
        .unwrap();
    let locked = Archive::create(&location, identity(codec), &Keys::default())
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
        let error = Archive::create(&location, other, &Keys::default())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
    }
    let writing = Archive::create(&location, identity(codec), &Keys::default())
        .await
        .unwrap();
    write_rest(&writing, &[]).await.unwrap();
    drop(writing);
    let error = Archive::create(&location, identity(codec), &Keys::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Complete { .. }), "{error}");
    fs::remove_file(path.join("manifest.json")).unwrap();
    fs::remove_file(path.join("snapshot.json")).unwrap();
    let error = Archive::create(&location, identity(codec), &Keys::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
}

#[tokio::test]
async fn a_snapshot_without_all_its_parts_is_not_finished() {
    let (_dir, location, _) = directory();
    let writing = Archive::create(&location, identity(StoredCodec::None), &Keys::default())
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
