use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStoreExt, path};

use super::*;

async fn keys(store: &Arc<dyn ObjectStore>) -> Vec<String> {
    let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut keys: Vec<_> = objects.iter().map(|o| o.location.to_string()).collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn a_long_part_is_uploaded_in_pieces_and_a_dropped_one_is_not_seen() {
    let (store, place) = memory();
    let writing = create_in(place.clone(), identity(StoredCodec::None), &Keys::default())
        .await
        .unwrap();
    let text = rows(1, 20 * 1024 * 1024);
    write_part(&writing, 0, &text).await.unwrap();
    let mut part = writing.part(PartNo(1)).await.unwrap();
    let mut packer = Packer::stored(StoredCodec::None);
    for raw in text.chunks(CHUNK_RAW_MAX) {
        let (head, payload) = packer.pack(&mut raw.to_vec()).unwrap();
        part.chunk(head, &payload).await.unwrap();
    }
    drop(part);
    let written = [
        "a/b/parts/0000000.copy",
        "a/b/parts/0000000.index",
        "a/b/snapshot.json",
    ];
    assert_eq!(keys(&store).await, written);
    let kept = writing.kept(1).await.unwrap();
    assert_eq!(kept.len(), 1);
    write_rest(&writing, &[0]).await.unwrap();
    let archive = Archive::open_in(place, &Keys::default()).await.unwrap();
    assert!(read_part(&archive, 0).await.unwrap() == text);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_gives_the_same() {
    let config = ThrottleConfig {
        wait_get_per_call: Duration::from_millis(40),
        wait_put_per_call: Duration::from_millis(80),
        wait_list_per_call: Duration::from_millis(20),
        ..ThrottleConfig::default()
    };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), config));
    let place = Place::in_store(store, "slow");
    let writing = create_in(place.clone(), identity(StoredCodec::Lz4), &Keys::default())
        .await
        .unwrap();
    let text = noise(9 * 1024 * 1024);
    write_part(&writing, 0, &text).await.unwrap();
    write_rest(&writing, &[0]).await.unwrap();
    let archive = Archive::open_in(place, &Keys::default()).await.unwrap();
    assert!(read_part(&archive, 0).await.unwrap() == text);
    assert_eq!(archive.verify(1, |_| ()).await.unwrap().problems, []);
}

#[tokio::test]
async fn missing_and_shortened_objects_are_named() {
    let (store, place) = memory();
    let writing = create_in(
        place.clone(),
        identity(StoredCodec::Zstd(1)),
        &Keys::default(),
    )
    .await
    .unwrap();
    for no in 0..3 {
        write_part(&writing, no, &rows(no.into(), 300_000))
            .await
            .unwrap();
    }
    write_rest(&writing, &[0, 1, 2]).await.unwrap();
    let key = |name: &str| path::Path::from(format!("a/b/parts/{name}"));
    store.delete(&key("0000000.copy.zst")).await.unwrap();
    let bytes = store
        .get(&key("0000001.copy.zst"))
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    let short = bytes.slice(..bytes.len() - 1);
    store
        .put(&key("0000001.copy.zst"), short.into())
        .await
        .unwrap();
    store.delete(&key("0000002.index")).await.unwrap();
    let archive = Archive::open_in(place, &Keys::default()).await.unwrap();
    for problems in [
        archive.check_presence().await.unwrap(),
        archive.verify(3, |_| ()).await.unwrap().problems,
    ] {
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(shown[0], "parts/0000000.copy.zst is missing");
        assert!(
            shown[1].starts_with("parts/0000001.copy.zst is truncated"),
            "{shown:?}"
        );
        assert_eq!(shown[2], "parts/0000002.index is missing");
        assert_eq!(shown.len(), 3);
    }
}

#[tokio::test]
async fn objects_are_deleted_and_strangers_stay() {
    let (store, place) = memory();
    let writing = create_in(place.clone(), identity(StoredCodec::None), &Keys::default())
        .await
        .unwrap();
    write_part(&writing, 0, &rows(1, 1_000)).await.unwrap();
    write_rest(&writing, &[0]).await.unwrap();
    let stranger = path::Path::from("a/b/readme");
    store.put(&stranger, "mine".into()).await.unwrap();
    let deleted = Archive::delete_in(&place, SnapshotId(0xABCD))
        .await
        .unwrap();
    assert_eq!(
        (deleted.files, deleted.strangers),
        (6, vec!["readme".to_owned()])
    );
    assert_eq!(keys(&store).await, ["a/b/readme"]);
}

#[tokio::test]
async fn a_bucket_is_claimed_once() {
    let (_store, place) = memory();
    create_in(place.clone(), identity(StoredCodec::None), &Keys::default())
        .await
        .unwrap();
    let other = Identity {
        snapshot_id: SnapshotId(1),
        ..identity(StoredCodec::None)
    };
    let error = create_in(place, other, &Keys::default()).await.unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
}
