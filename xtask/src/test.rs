//! `cargo xtask test`: everything that must pass, fastest to fail first.

use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use steep_tests::bucket::S3Server;
use steep_tests::host_image::HostImage;
use steep_tests::pg::Installation;
use steep_tests::required::is_required;

use crate::{cargo, units};

/// The versions that `tests/tests/versions.rs` copies between.
const VERSIONS: [u32; 3] = [18, 17, 15];

/// Options of the tests.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Leave out the tests that run whole clusters
    #[arg(long)]
    fast: bool,
}

/// Runs the steps, and stops at the first failure.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut steps = Steps::default();
    // Most of it is a download, so it is made beside the steps that compile.
    let image = (!arguments.fast).then(|| std::thread::spawn(HostImage::installed));
    steps.run("formatting", |cargo| {
        cargo.args(["fmt", "--all", "--check"])
    })?;
    steps.run("lints", |cargo| {
        cargo.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])
    })?;
    steps.run("documentation", |cargo| {
        cargo.env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--workspace",
            "--no-deps",
            "--quiet",
        ])
    })?;
    if has_subcommand("deny") {
        steps.run("dependencies", |cargo| {
            cargo.args([
                "deny",
                "--log-level",
                "error",
                "check",
                "bans",
                "licenses",
                "sources",
            ])
        })?;
    } else {
        steps.skip("dependencies", "cargo-deny is not installed");
    }
    // With the tests' targets: without them, dependencies have fewer features, and would be built twice.
    steps.run("binaries", |cargo| {
        cargo.args(["build", "--workspace", "--all-targets", "--quiet"])
    })?;
    steps.run("documentation tests", |cargo| {
        cargo.args(["test", "--workspace", "--doc", "--quiet"])
    })?;
    match image {
        None => steps.skip("PostgreSQL, S3, Docker", "--fast"),
        Some(image) => steps.time("PostgreSQL, S3, Docker", || {
            servers()?;
            hosts(image)
        })?,
    }
    steps.run("tests", |cargo| {
        // Errors of tests are chains of causes, which backtraces would hide.
        tests(cargo.env("RUST_LIB_BACKTRACE", "0"), arguments.fast)
    })?;
    steps.report();
    Ok(())
}

/// Downloads what the tests need, and lists what is not available.
fn servers() -> Result<()> {
    let preferred = Installation::preferred()?;
    println!(
        "PostgreSQL {} in {}",
        preferred.version(),
        preferred.bin().display()
    );
    for major in VERSIONS
        .into_iter()
        .filter(|major| *major != preferred.major())
    {
        match Installation::of_major(major) {
            Ok(found) => println!(
                "PostgreSQL {} in {}",
                found.version(),
                found.bin().display()
            ),
            Err(error) => println!("PostgreSQL {major}: NOT TESTED, {error:#}"),
        }
    }
    match S3Server::installed() {
        Ok(found) => println!("S3: moto {} in {}", found.version(), found.dir().display()),
        Err(error) if is_required() => return Err(error),
        Err(error) => println!("S3, tests/tests/bucket.rs: NOT TESTED, {error:#}"),
    }
    Ok(())
}

/// Waits for the image of hosts in containers.
fn hosts(image: JoinHandle<Result<HostImage>>) -> Result<()> {
    let image = image.join();
    match image.unwrap_or_else(|_| Err(anyhow::anyhow!("making the image panicked"))) {
        Ok(image) => println!("Docker: hosts are containers of {}", image.descriptor()),
        Err(error) if is_required() => return Err(error),
        Err(error) => println!("Docker, tests/tests/hosts: NOT TESTED, {error:#}"),
    }
    Ok(())
}

/// cargo-nextest runs tests concurrently within the limits of `.config/nextest.toml`; without it,
/// one binary runs after the other, two tests at a time.
fn tests(cargo: &mut Command, fast: bool) -> &mut Command {
    if has_subcommand("nextest") {
        cargo.args(["nextest", "run", "--workspace"]);
        if fast {
            cargo.args(["-E", "not (package(steep-tests) and kind(test))"]);
        }
        return cargo;
    }
    cargo.args(["test", "--workspace", "--lib", "--bins", "--tests"]);
    if fast {
        cargo.args(["--exclude", "steep-tests"]);
    }
    cargo.args(["--", "--test-threads", "2"])
}

fn has_subcommand(name: &str) -> bool {
    let mut ask = cargo::command();
    ask.args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}

/// The completed steps and their times.
#[derive(Default)]
struct Steps(Vec<(&'static str, Option<Duration>)>);

impl Steps {
    fn run(
        &mut self,
        name: &'static str,
        describe: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<()> {
        self.time(name, || cargo::run(describe(&mut cargo::command())))
    }

    fn time(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("── {name}");
        let begun = Instant::now();
        let outcome = step();
        self.0.push((name, Some(begun.elapsed())));
        if let Err(error) = outcome {
            self.report();
            bail!("{name}: {error:#}");
        }
        Ok(())
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        println!("── {name}: skipped, {why}");
        self.0.push((name, None));
    }

    fn report(&self) {
        println!();
        for (name, took) in &self.0 {
            let took = took.map_or_else(|| "skipped".to_owned(), units::duration);
            println!("{name:<22}{took:>14}");
        }
    }
}
