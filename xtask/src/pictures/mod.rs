//! `cargo xtask pictures`: the pictures of README.md, from a real run on a pseudo-terminal.
//!
//! It starts a cluster, copies a database slowly, and writes the terminal's screens as SVG, so that
//! the pictures can be repeated whenever the screens change.

mod svg;
mod terminal;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use steep_tests::cluster::Cluster;
use steep_tests::paths::{self, Binaries};
use steep_tests::pg::Grouping;
use steep_tests::sample;

use self::terminal::Terminal;
use crate::cargo;

/// Lines and columns.
const SIZE: (u16, u16) = (28, 104);

/// The longest wait for anything to appear.
const LIMIT: Duration = Duration::from_secs(120);

/// Options of the pictures.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the pictures go
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Size of the sample database: 100,000 pgbench accounts and about 16 MB each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=1_000))]
    scale: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    println!("Building");
    // Screens are the same in every build; the tests' build often exists already.
    let mut build = cargo::command();
    build.args(["build", "-p", "steep-cli", "-p", "steep-agent", "-p"]);
    cargo::run(build.arg("steep-coordinator"))?;
    let output = arguments
        .output
        .clone()
        .unwrap_or_else(|| paths::workspace().join("docs/pictures"));
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;

    println!("Starting three servers, a coordinator and three agents");
    let binaries = Binaries::within(paths::target_dir()?.join("debug"))?;
    let cluster = Cluster::builder()
        .binaries(binaries)
        .nodes(3)
        .grouping(Grouping::Own)
        .start()?;
    println!("Loading the sample database (scale {})", arguments.scale);
    sample::create(&cluster.database("node_a"), arguments.scale)?;
    let album = Album { output };
    init(&cluster, &album)?;
    watch(&cluster, &album)
}

/// `init`, running and at its end.
fn init(cluster: &Cluster, album: &Album) -> Result<()> {
    let line = ["init", "node_b", "--from", "node_a", "--max-rate", "40MB"];
    let mut terminal = Terminal::start(cluster.cli_command(&line), SIZE)?;
    terminal.wait("half of the copy", LIMIT, |text| {
        percent(text, "node_b") >= 30.0
    })?;
    let command = format!("steep-repl {}", line.join(" "));
    album.add("init", &command, &terminal.screen())?;
    terminal.finish(LIMIT)?;
    album.add("report", &command, &terminal.screen())
}

/// `watch` with a running job: all nodes, then that one.
fn watch(cluster: &Cluster, album: &Album) -> Result<()> {
    let line = [
        "init",
        "node_c",
        "--from",
        "node_a",
        "--max-rate",
        "20MB",
        "--detach",
    ];
    cluster.cli(&line)?.expect(0)?;
    let mut terminal = Terminal::start(cluster.cli_command(&["watch"]), SIZE)?;
    terminal.wait("the nodes", LIMIT, |text| text.contains("node_c"))?;
    terminal.press("jj")?;
    terminal.wait("a third of the copy", LIMIT, |text| {
        percent(text, " node_c") >= 25.0
    })?;
    album.add("watch", "steep-repl watch", &terminal.screen())?;
    terminal.press("\r")?;
    terminal.wait("the detail", LIMIT, |text| {
        text.contains("preflight") && text.contains("throughput")
    })?;
    album.add("watch-detail", "steep-repl watch", &terminal.screen())?;
    terminal.press("q")?;
    terminal.finish(LIMIT)?;
    cluster
        .cli(&["init", "cancel", "--node", "node_c", "--yes"])?
        .expect(0)
        .map(drop)
}

/// The percentage on the first line that starts with that word; zero if there is none.
fn percent(text: &str, beginning: &str) -> f64 {
    let line = text
        .lines()
        .map(|line| line.trim_start_matches([' ', '●']))
        .find(|line| line.starts_with(beginning.trim_start()));
    line.into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.strip_suffix('%')?.parse().ok())
        .next()
        .unwrap_or(0.0)
}

/// The directory of the pictures.
struct Album {
    output: PathBuf,
}

impl Album {
    fn add(&self, name: &str, title: &str, screen: &vt100::Screen) -> Result<()> {
        let path = self.output.join(format!("{name}.svg"));
        fs::write(&path, svg::picture(title, screen))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_percentage_is_found_on_its_nodes_line() {
        let text =
            " 3 nodes  12.0%\n ● node_b copying ━━── 40.5% 3 MB/s\n ● node_c copying ── 7.0%";
        assert!((percent(text, "node_b") - 40.5).abs() < 1e-9);
        assert!((percent(text, " node_c") - 7.0).abs() < 1e-9);
        assert!(percent(text, "node_x").abs() < 1e-9);
    }
}
