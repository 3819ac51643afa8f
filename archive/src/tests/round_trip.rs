use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn every_codec_and_place_gives_back_what_was_stored() {
    let both = [Keys::default(), keys(&new_key())];
    for (codec, keys) in CODECS.iter().flat_map(|c| both.iter().map(|k| (*c, k))) {
        let (_dir, location, _) = directory();
        for place in [memory().1, place(&location, Purpose::Write).await] {
            let texts = [rows(1, 2_500_000), noise(700_000), Vec::new()];
            let writing = create_in(place.clone(), identity_with(codec, keys), keys)
                .await
                .unwrap();
            for (no, text) in (0..).zip(&texts) {
                let part = write_part(&writing, no, text).await.unwrap();
                assert_eq!(part.bytes.0, text.len() as u64);
            }
            let manifest = write_rest(&writing, &[0, 1, 2]).await.unwrap();
            let archive = Archive::open_in(place, keys).await.unwrap();
            assert_eq!(archive.manifest(), &manifest);
            assert_eq!(archive.check_presence().await.unwrap(), []);
            for (no, text) in (0..).zip(&texts) {
                assert!(
                    read_part(&archive, no).await.unwrap() == *text,
                    "{codec}, part {no}"
                );
            }
            let schema = archive.schema().await.unwrap();
            assert_eq!(&schema.pre_data[..], b"CREATE TABLE orders ();\n");
            assert_eq!(&schema.post_data[..], b"CREATE INDEX;\n");
            assert_eq!(archive.sequences().await.unwrap()[0].last_value, 42);
            let mut heard = Vec::new();
            let verified = archive
                .verify(2, |progress| heard.push(progress))
                .await
                .unwrap();
            assert_eq!(verified.problems, []);
            assert_eq!((verified.parts, verified.rows), (3, manifest.totals.rows));
            assert_eq!(
                heard.last().unwrap().stored_bytes,
                manifest.totals.stored_bytes
            );
        }
    }
}

#[tokio::test]
async fn parts_are_written_at_once() {
    let (_dir, location, _) = directory();
    let writing = create(&location, identity(StoredCodec::Lz4), &Keys::default())
        .await
        .unwrap();
    let texts: Vec<_> = (0..8).map(|no| rows(no, 400_000)).collect();
    let parts = (0..)
        .zip(&texts)
        .map(|(no, text)| write_part(&writing, no, text));
    futures_util::future::try_join_all(parts).await.unwrap();
    write_rest(&writing, &[0, 1, 2, 3, 4, 5, 6, 7])
        .await
        .unwrap();
    drop(writing);
    let archive = Archive::open(&location, &Keys::default()).await.unwrap();
    assert_eq!(archive.verify(4, |_| ()).await.unwrap().problems, []);
}

#[tokio::test]
async fn a_directory_and_its_files_are_the_agents_alone() {
    let (_dir, _, path) = sample(StoredCodec::Zstd(3)).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(&path.join("parts"))), (0o700, 0o700));
    let found = files(&path);
    for file in &found {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
    let expected = [
        "manifest.json",
        "parts/0000000.copy.zst",
        "parts/0000000.index",
        "parts/0000001.copy.zst",
        "parts/0000001.index",
        "parts/0000002.copy.zst",
        "parts/0000002.index",
        "schema.sql",
        "sequences.json",
        "snapshot.json",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_directory_that_others_can_write_to_is_refused() {
    let (_dir, location, path) = directory();
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = create(&location, identity(StoredCodec::None), &Keys::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unsafe { .. }), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_deleted_and_strangers_files_stay() {
    let (_dir, location, path) = sample(StoredCodec::Gzip).await;
    std::fs::write(path.join("notes.txt"), "mine").unwrap();
    std::fs::write(path.join("parts/0000000.index.bak"), "mine").unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"parts/\xFF");
    std::fs::write(path.join(odd), "mine").unwrap();
    let other = Archive::delete(&location, SnapshotId(1)).await.unwrap_err();
    assert!(matches!(other, Error::Occupied { .. }), "{other}");
    let open = Archive::open(&location, &Keys::default()).await.unwrap();
    let locked = Archive::delete(&location, SnapshotId(0xABCD))
        .await
        .unwrap_err();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
    drop(open);
    let deleted = Archive::delete(&location, SnapshotId(0xABCD))
        .await
        .unwrap();
    assert_eq!((deleted.files, deleted.strangers_count), (10, 3));
    std::fs::remove_file(path.join(odd)).unwrap();
    assert_eq!(files(&path), ["notes.txt", "parts/0000000.index.bak"]);
    let again = Archive::delete(&location, SnapshotId(0xABCD))
        .await
        .unwrap();
    assert_eq!(again.files, 0);

    let (_dir, location, path) = sample(StoredCodec::Gzip).await;
    Archive::delete(&location, SnapshotId(0xABCD))
        .await
        .unwrap();
    assert!(!path.exists(), "an empty directory goes, too");
    Archive::delete(&location, SnapshotId(0xABCD))
        .await
        .unwrap();
}
