//! Lets `testcontainers` talk to Engines of all ages: it speaks one version of Docker's interface, and an
//! older Engine refuses a newer one than its own, though what is used here has not changed in years.
//!
//! So a test runs in a process of its own, whose `DOCKER_HOST` is a socket on which the version in each
//! request is replaced by the Engine's. A process cannot change its own environment safely.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use steep_tests::host_image::{HostImage, docker};
use steep_tests::scratch::Scratch;

/// Says that this process is the one with the socket.
const INSIDE: &str = "STEEP_TESTS_DOCKER_INSIDE";

/// Where it is by default.
const SOCKET: &str = "/var/run/docker.sock";

/// Runs `test`, which is the test of that name, where `testcontainers` can talk to the Engine.
pub(crate) fn with_engine(name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let scratch = Scratch::new()?;
    let socket = scratch.path().join("docker.sock");
    let engine = engine()?;
    if HostImage::available()?.is_none() {
        return Ok(());
    }
    let version = docker(&["version", "--format", "{{.Server.APIVersion}}"])?;
    let listener = UnixListener::bind(&socket)?;
    thread::spawn(move || serve(&listener, &engine, &version));
    let status = Command::new(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .status()
        .context("cannot run this test again")?;
    ensure!(status.success(), "{name} failed, see above ({status})");
    Ok(())
}

/// The Engine's socket.
fn engine() -> Result<PathBuf> {
    let Ok(host) = std::env::var("DOCKER_HOST") else {
        return Ok(PathBuf::from(SOCKET));
    };
    let path = host.strip_prefix("unix://");
    let path = path.with_context(|| format!("hosts in containers need a local Docker, not {host}"));
    path.map(PathBuf::from)
}

/// Ends with the process.
fn serve(listener: &UnixListener, engine: &Path, version: &str) {
    for client in listener.incoming().flatten() {
        let (engine, version) = (engine.to_path_buf(), version.to_owned());
        thread::spawn(move || drop(relay(client, &engine, &version)));
    }
}

fn relay(mut client: UnixStream, engine: &Path, version: &str) -> std::io::Result<()> {
    let mut engine = UnixStream::connect(engine)?;
    let (mut answers, mut back) = (engine.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        drop(std::io::copy(&mut answers, &mut back));
        drop(back.shutdown(Shutdown::Both));
    });
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return engine.shutdown(Shutdown::Write);
        }
        engine.write_all(&translated(&buffer[..length], version))?;
    }
}

/// Replaces the version if `bytes` begin with a request: the client writes each at once.
fn translated(bytes: &[u8], version: &str) -> Vec<u8> {
    let request = ["GET", "POST", "DELETE", "PUT", "HEAD"]
        .iter()
        .find_map(|method| {
            let rest = bytes
                .strip_prefix(method.as_bytes())?
                .strip_prefix(b" /v")?;
            let end = rest.iter().position(|byte| *byte == b'/')?;
            Some((method, &rest[end..]))
        });
    match request {
        Some((method, rest)) => [format!("{method} /v{version}").as_bytes(), rest].concat(),
        None => bytes.to_vec(),
    }
}

#[test]
fn only_the_version_of_a_request_is_replaced() {
    let request = b"POST /v1.53/containers/create HTTP/1.1\r\n";
    let expected = b"POST /v1.41/containers/create HTTP/1.1\r\n";
    assert_eq!(translated(request, "1.41"), expected);
    assert_eq!(
        translated(b"{\"v\": \"/v1.53/\"}", "1.41"),
        b"{\"v\": \"/v1.53/\"}"
    );
}
