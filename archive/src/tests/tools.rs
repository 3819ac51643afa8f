//! The files are ordinary: tools that know nothing of us open them.

use std::process::Command;

use super::*;

/// What a tool prints, if it is installed.
fn run(program: &str, arguments: &[&str], file: &Path) -> Option<Vec<u8>> {
    let output = Command::new(program)
        .args(arguments)
        .arg(file)
        .output()
        .ok()?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {error}");
    Some(output.stdout)
}

#[tokio::test]
async fn standard_tools_open_every_part() {
    for (codec, suffix, program, arguments) in [
        (StoredCodec::Zstd(3), ".copy.zst", "zstd", &["-dc"][..]),
        (StoredCodec::Lz4, ".copy.lz4", "lz4", &["-dc"]),
        (StoredCodec::Gzip, ".copy.gz", "gzip", &["-dc"]),
        (StoredCodec::None, ".copy", "cat", &[]),
    ] {
        let (_dir, location, path) = directory();
        let writing = create(&location, identity(codec), &Keys::default())
            .await
            .unwrap();
        for (no, text) in (0..).zip([rows(1, 900_000), noise(600_000)]) {
            write_part(&writing, no, &text).await.unwrap();
            let file = path.join(format!("parts/{no:07}{suffix}"));
            match run(program, arguments, &file) {
                Some(printed) => assert!(printed == text, "{program} prints something else"),
                None => println!("skipped: {program} is not installed"),
            }
        }
    }
}

#[tokio::test]
async fn jq_and_sha256sum_check_a_manifest() {
    let (_dir, location, path) = sample(StoredCodec::Zstd(3)).await;
    let Some(canonical) = run(
        "jq",
        &["-j", "-c", "del(.checksum)"],
        &path.join("manifest.json"),
    ) else {
        println!("skipped: jq is not installed");
        return;
    };
    use sha2::{Digest, Sha256};
    let sum = crate::Sum(Sha256::digest(&canonical).into());
    let archive = Archive::open(&location, &Keys::default()).await.unwrap();
    assert_eq!(archive.manifest().checksum, Some(sum));
}
