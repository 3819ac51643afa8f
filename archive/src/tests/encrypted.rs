//! Snapshots whose files are encrypted.

use std::fs;

use super::*;
use crate::keys::KeyProblem;

#[tokio::test]
async fn all_but_two_files_are_encrypted_and_the_manifest_says_so() {
    let keys = keys(&new_key());
    let (_dir, location, path) = sample_with(StoredCodec::None, &keys).await;
    let expected = [
        "manifest.json",
        "parts/0000000.copy.age",
        "parts/0000000.index.age",
        "parts/0000001.copy.age",
        "parts/0000001.index.age",
        "parts/0000002.copy.age",
        "parts/0000002.index.age",
        "schema.sql.age",
        "sequences.json.age",
        "snapshot.json",
    ];
    assert_eq!(files(&path), expected);
    for file in expected.iter().filter(|file| file.ends_with(".age")) {
        let bytes = fs::read(path.join(file)).unwrap();
        assert!(bytes.starts_with(b"age-encryption.org/v1\n"), "{file}");
        for secret in [&b"note of"[..], b"CREATE", b"orders_id_seq"] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{file}");
        }
    }
    let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["format_version"], 2);
    assert_eq!(manifest["encryption"]["format"], "age");
    assert_eq!(manifest["encryption"]["recipients"][0], recipient(&keys));
    for part in manifest["tables"][0]["parts"].as_array().unwrap() {
        let no = part["no"].as_u64().unwrap();
        for (kind, key) in [("copy", "stored_bytes"), ("index", "index_bytes")] {
            let file = path.join(format!("parts/{no:07}.{kind}.age"));
            assert_eq!(part[key], file.metadata().unwrap().len(), "{key} of {no}");
        }
    }
    // A plain one is as it was before there was encryption.
    let (_dir, _, path) = sample(StoredCodec::None).await;
    let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
    assert!(manifest.contains("\"format_version\": 1"), "{manifest}");
    assert!(!manifest.contains("index_bytes") && !manifest.contains("encryption"));
    drop(location);
}

#[tokio::test]
async fn without_its_key_a_snapshot_is_checked_as_it_is_stored_and_not_read() {
    let writer = keys(&new_key());
    let (_dir, location, _) = sample_with(StoredCodec::Zstd(3), &writer).await;
    let only = keys(&format!("{}\n", recipient(&writer)));
    for (other, part) in [
        (Keys::default(), "there is no key"),
        (only, "only recipients"),
        (keys(&new_key()), "has only the key of age1"),
    ] {
        let archive = Archive::open(&location, &other).await.unwrap();
        let errors = [
            archive.check_keys().unwrap_err(),
            archive.schema().await.unwrap_err(),
            archive.sequences().await.unwrap_err(),
            archive.part(PartNo(0)).await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Key { .. }), "{error:?}");
            assert!(!error.is_damage() && !error.may_pass(), "{error}");
            let text = error.to_string();
            for part in [part, &recipient(&writer), &location.to_string()] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
        assert_eq!(archive.check_presence().await.unwrap(), []);
        let verified = archive.verify(2, |_| ()).await.unwrap();
        assert_eq!(verified.problems, []);
        assert_eq!(
            (verified.parts, verified.rows.0, verified.bytes.0),
            (3, 0, 0)
        );
        assert!(verified.unread.unwrap().contains(part));
    }
    let archive = Archive::open(&location, &writer).await.unwrap();
    let verified = archive.verify(2, |_| ()).await.unwrap();
    assert_eq!((verified.problems, verified.unread), (Vec::new(), None));
    assert_eq!(verified.rows, archive.manifest().totals.rows);
}

#[tokio::test]
async fn each_wrong_file_is_named_with_and_without_the_key() {
    type Harm = fn(&Path);
    const DATA: &str = "parts/0000000.copy.lz4.age";
    const INDEX: &str = "parts/0000001.index.age";
    // What is done, what a cheap look finds, what a full one finds.
    let cases: &[(Harm, &[&str], &[&str])] = &[
        (
            |at| fs::remove_file(at.join(DATA)).unwrap(),
            &["parts/0000000.copy.lz4.age is missing"],
            &["parts/0000000.copy.lz4.age is missing"],
        ),
        (
            |at| truncate(&at.join(DATA), 1),
            &["parts/0000000.copy.lz4.age is truncated"],
            &["parts/0000000.copy.lz4.age is truncated"],
        ),
        (
            |at| flip(&at.join(DATA), |length| length / 2),
            &[],
            &["parts/0000000.copy.lz4.age is damaged: its "],
        ),
        (
            |at| flip(&at.join(DATA), |length| length - 1),
            &[],
            &["parts/0000000.copy.lz4.age is damaged: its "],
        ),
        (
            |at| flip(&at.join(DATA), |_| 30),
            &[],
            &["parts/0000000.copy.lz4.age is damaged: it"],
        ),
        (
            |at| flip(&at.join(INDEX), |length| length - 20),
            &["parts/0000001.index.age is damaged: it is not the one that was written"],
            &["parts/0000001.index.age is damaged"],
        ),
        (
            |at| truncate(&at.join(INDEX), 1),
            &["parts/0000001.index.age is truncated"],
            &["parts/0000001.index.age is truncated"],
        ),
        (
            |at| swap(&at.join(INDEX), &at.join("parts/0000000.index.age")),
            &[
                "parts/0000000.index.age is swapped: its content is that of parts/0000001.index.age",
                "parts/0000001.index.age is swapped",
            ],
            &[
                "parts/0000000.index.age is swapped",
                "parts/0000001.index.age is swapped",
            ],
        ),
        (
            |at| swap(&at.join(DATA), &at.join("parts/0000001.copy.lz4.age")),
            &[
                "parts/0000000.copy.lz4.age is swapped: its content is that of parts/0000001.copy.lz4.age",
                "parts/0000001.copy.lz4.age is swapped",
            ],
            &[
                "parts/0000000.copy.lz4.age is swapped",
                "parts/0000001.copy.lz4.age is swapped",
            ],
        ),
        (
            |at| flip(&at.join("schema.sql.age"), |length| length - 1),
            &["schema.sql.age is damaged"],
            &["schema.sql.age is damaged"],
        ),
        (
            |at| truncate(&at.join("sequences.json.age"), 1),
            &["sequences.json.age is truncated"],
            &["sequences.json.age is truncated"],
        ),
    ];
    let key = keys(&new_key());
    for keys in [&key, &Keys::default()] {
        for (case, (harm, cheap, full)) in cases.iter().enumerate() {
            let (_dir, location, path) = sample_with(StoredCodec::Lz4, &key).await;
            harm(&path);
            let (present, verified) = problems(&location, keys).await;
            for (found, expected) in [(present, cheap), (verified, full)] {
                let matches = found.len() == expected.len()
                    && found.iter().zip(*expected).all(|(f, e)| f.starts_with(e));
                assert!(
                    matches,
                    "case {case}, {keys:?}: {found:#?} where {expected:#?}"
                );
            }
        }
    }
}

/// Whoever can write to a place knows the recipient and can encrypt to it. The manifest has the digests.
#[tokio::test]
async fn files_that_somebody_else_has_encrypted_to_the_same_recipient_are_refused() {
    let key = keys(&new_key());
    let (_dir, location, path) = sample_with(StoredCodec::Lz4, &key).await;
    let (_other_dir, _, other) = sample_with(StoredCodec::Lz4, &key).await;
    for file in files(&path).iter().filter(|file| file.ends_with(".age")) {
        fs::copy(other.join(file), path.join(file)).unwrap();
    }
    let archive = Archive::open(&location, &key).await.unwrap();
    assert_eq!(
        archive.check_presence().await.unwrap().len(),
        2 + 3 + {
            // The lengths of their heads differ by chance, too.
            let lengths = archive.manifest().parts().filter(|part| {
                let file = path.join(format!("parts/{:07}.copy.lz4.age", part.no.0));
                file.metadata().unwrap().len() != part.stored_bytes.0
            });
            lengths.count()
        }
    );
    assert!(read_part(&archive, 0).await.is_err());
    assert!(archive.schema().await.is_err());
}

#[tokio::test]
async fn a_file_that_is_encrypted_to_another_key_is_named() {
    let key = keys(&new_key());
    let (_dir, location, path) = sample_with(StoredCodec::None, &key).await;
    let file = path.join("parts/0000002.copy.age");
    let length = file.metadata().unwrap().len();
    let foreign = keys(&new_key());
    let forged = loop {
        // A head has some bytes at random.
        let forged = crate::content::encrypt(b"", &foreign).unwrap();
        if forged.len() as u64 == length {
            break forged;
        }
    };
    fs::write(&file, forged).unwrap();
    let archive = Archive::open(&location, &key).await.unwrap();
    let error = read_part(&archive, 2).await.unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.contains("parts/0000002.copy.age is damaged"),
        "{shown}"
    );
    assert!(
        shown.contains("another key") && error.is_damage(),
        "{shown}"
    );
}

#[tokio::test]
async fn encrypted_parts_are_kept_if_they_are_right_also_by_whoever_cannot_read_them() {
    let key = keys(&new_key());
    let (_dir, location, path) = directory();
    let identity = || identity_with(StoredCodec::Lz4, &key);
    let finished = Finished::default();
    let writing = Archive::create(&location, identity(), &key, &finished);
    let writing = writing.await.unwrap();
    let mut whole = Vec::new();
    for no in 0..6 {
        let text = rows(no.into(), 300_000);
        whole.push(write_part(&writing, no, &text).await.unwrap());
    }
    drop(writing);
    let at = |file: &str| path.join("parts").join(file);
    truncate(&at("0000001.copy.lz4.age"), 1);
    flip(&at("0000002.copy.lz4.age"), |length| length / 2);
    flip(&at("0000003.index.age"), |length| length - 1);
    fs::copy(at("0000000.index.age"), at("0000004.index.age")).unwrap();
    fs::write(at("0000005.copy.lz4"), "a plain file among them").unwrap();
    let writing = Archive::create(&location, identity(), &key, &finished);
    let writing = writing.await.unwrap();
    assert_eq!(writing.kept(2).await.unwrap(), [whole[0], whole[5]]);
    assert_eq!(files(&path).len(), 5, "{:?}", files(&path));
    drop(writing);

    // Pieces of one snapshot are not encrypted in two ways.
    for (other, other_keys, part) in [
        (
            identity_with(StoredCodec::Lz4, &keys(&new_key())),
            None,
            "the key is not",
        ),
        (
            super::identity(StoredCodec::Lz4),
            None,
            "begun encrypted to age1",
        ),
    ] {
        let keys = other_keys.as_ref().unwrap_or(&key);
        let error = create(&location, other, keys).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }

    // Recipients alone suffice: what is stored is compared, and not read.
    let only = keys(&recipient(&key));
    let writing = Archive::create(&location, identity(), &only, &finished);
    let writing = writing.await.unwrap();
    assert_eq!(writing.kept(2).await.unwrap(), [whole[0], whole[5]]);
    write_part(&writing, 1, &rows(1, 300_000)).await.unwrap();
    write_rest(&writing, &[0, 1]).await.unwrap();
    drop(writing);
    let archive = Archive::open(&location, &key).await.unwrap();
    assert_eq!(archive.verify(2, |_| ()).await.unwrap().problems, []);
    assert!(read_part(&archive, 1).await.unwrap() == rows(1, 300_000));
    drop(archive);
    let archive = Archive::open(&location, &only).await.unwrap();
    let Err(Error::Key { why, .. }) = archive.part(PartNo(1)).await else {
        panic!("recipients read");
    };
    assert!(matches!(*why, KeyProblem::OnlyRecipients(_)));
}

#[tokio::test]
async fn a_claim_of_another_encryption_than_the_manifests_is_named() {
    let key = keys(&new_key());
    let (_dir, location, path) = sample_with(StoredCodec::None, &key).await;
    let file = path.join("snapshot.json");
    let claim = fs::read_to_string(&file).unwrap();
    let other = recipient(&keys(&new_key()));
    fs::write(&file, claim.replace(&recipient(&key), &other)).unwrap();
    let shown = Archive::open(&location, &key)
        .await
        .unwrap_err()
        .to_string();
    for part in ["snapshot.json is damaged", &other, &recipient(&key)] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
}

#[tokio::test]
async fn it_is_deleted_without_its_key() {
    let key = keys(&new_key());
    let (_dir, location, path) = sample_with(StoredCodec::Gzip, &key).await;
    let deleted = Archive::delete(&location, SnapshotId(0xABCD))
        .await
        .unwrap();
    assert_eq!((deleted.files, deleted.strangers_count), (10, 0));
    assert!(!path.exists());
}

#[tokio::test]
async fn parts_are_read_by_whoever_follows_while_they_are_written() {
    let key = keys(&new_key());
    let (_dir, location, _) = directory();
    let identity = identity_with(StoredCodec::Zstd(1), &key);
    let writing = create(&location, identity, &key).await.unwrap();
    let text = rows(3, 5_000_000);
    write_part(&writing, 7, &text).await.unwrap();
    let mut reader = writing.reader(PartNo(7)).unwrap();
    let (mut unpacker, mut read) = (Unpacker::default(), Vec::new());
    while let Some((head, payload)) = reader.next().await.unwrap() {
        use steep_protocol::frame::FrameHead;
        if let FrameHead::Chunk {
            packing,
            raw,
            digest,
            ..
        } = head
        {
            read.extend_from_slice(unpacker.unpack(packing, raw, &digest, &payload).unwrap());
        }
    }
    assert!(read == text);
}
