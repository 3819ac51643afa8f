//! Compares the processes' logs with docs/logs.md: the events and their fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/logs.md");

/// The heading between the coordinator's events and the agents'.
const HALVES: &str = "## Events of an agent";

/// Fields of every line.
const EVERY: [&str; 4] = ["timestamp", "level", "target", "message"];

/// A program with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The coordinator's.
    Coordinator,
    /// An agent's.
    Agent,
}

/// An event as documented: its levels, the fields it always has, and those it may have.
#[derive(Debug)]
struct Schema {
    levels: Vec<String>,
    always: BTreeSet<String>,
    known: BTreeSet<String>,
}

/// The parsed page.
#[derive(Debug)]
pub struct Documented {
    coordinator: BTreeMap<String, Schema>,
    agent: BTreeMap<String, Schema>,
    types: BTreeMap<String, String>,
}

/// All cells of the table rows whose first cell is a name in backticks.
#[must_use]
pub fn rows(page: &str) -> Vec<Vec<String>> {
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// Words in backticks.
#[must_use]
pub fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

impl Documented {
    /// Parses the page.
    ///
    /// # Errors
    /// The page has another form.
    pub fn read() -> Result<Self> {
        let (coordinator, agent) = PAGE.split_once(HALVES).context("two halves")?;
        let types = rows(PAGE).into_iter().filter(|row| row.len() == 3);
        Ok(Self {
            coordinator: schemas(coordinator)?,
            agent: schemas(agent)?,
            types: types
                .flat_map(|row| {
                    let names = quoted(&row[0]).into_iter();
                    names.map(move |name| (name, row[1].clone()))
                })
                .collect(),
        })
    }

    /// Every event of that program.
    #[must_use]
    pub fn events(&self, program: Program) -> BTreeSet<&str> {
        self.of(program).keys().map(String::as_str).collect()
    }

    fn of(&self, program: Program) -> &BTreeMap<String, Schema> {
        match program {
            Program::Coordinator => &self.coordinator,
            Program::Agent => &self.agent,
        }
    }

    /// Checks a line against its schema and returns its event, if any.
    ///
    /// # Errors
    /// What differs from the documentation.
    pub fn check(&self, program: Program, line: &Value) -> Result<Option<String>> {
        let fields = line.as_object().context("no object")?;
        for name in EVERY {
            ensure!(line[name].is_string(), "{name} is missing");
        }
        let Some(event) = line["event"].as_str() else {
            return Ok(None);
        };
        let schema = self.of(program).get(event).context("not documented")?;
        let level = line["level"].as_str().unwrap_or_default().to_owned();
        ensure!(schema.levels.contains(&level), "level {level}");
        let missing: Vec<_> = schema
            .always
            .iter()
            .filter(|name| !fields.contains_key(*name))
            .collect();
        ensure!(missing.is_empty(), "{missing:?} are missing");
        for (name, value) in fields {
            if EVERY.contains(&name.as_str()) || name == "event" {
                continue;
            }
            let expected = schema.always.contains(name) || schema.known.contains(name);
            ensure!(expected, "{name} is not documented");
            let right = match self.types.get(name).map(String::as_str) {
                Some("number") => value.is_number(),
                Some("string") => value.is_string(),
                _ => false,
            };
            ensure!(right, "{name} is {value}");
        }
        Ok(Some(event.to_owned()))
    }

    /// Checks every line of a log and returns its events. A line that is not JSON is a message from
    /// before or after logging; the last may be incomplete.
    ///
    /// # Errors
    /// The first line that differs from the documentation.
    pub fn check_log(&self, program: Program, log: &Path) -> Result<BTreeSet<String>> {
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        let mut events = BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let Ok(value) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let event = self.check(program, &value);
            events.extend(event.with_context(|| format!("{}: {line}", log.display()))?);
        }
        Ok(events)
    }

    /// [`Documented::check_log`] for every log in that directory.
    ///
    /// # Errors
    /// As there.
    pub fn check_all(&self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            match name {
                Some("coordinator.log") => self.check_log(Program::Coordinator, &path)?,
                Some(name) if name.starts_with("agent-") && name.ends_with(".log") => {
                    self.check_log(Program::Agent, &path)?
                }
                _ => continue,
            };
        }
        Ok(())
    }
}

/// The events in one half of the page.
fn schemas(page: &str) -> Result<BTreeMap<String, Schema>> {
    let mut schemas = BTreeMap::new();
    for row in rows(page) {
        let [event, levels, always, known] = &row[..] else {
            continue;
        };
        let schema = Schema {
            levels: levels.split(", ").map(str::to_owned).collect(),
            always: quoted(always).into_iter().collect(),
            known: quoted(known).into_iter().collect(),
        };
        schemas.insert(quoted(event).pop().context("an event")?, schema);
    }
    Ok(schemas)
}

/// Every event named in the sources below that directory, without tests.
///
/// # Errors
/// They cannot be read.
pub fn named_in_sources(dir: &Path) -> Result<BTreeSet<String>> {
    let mut events = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if path.is_dir() && name != "tests" {
            events.extend(named_in_sources(&path)?);
        } else if path.is_file() && name.ends_with(".rs") && name != "tests.rs" {
            let text = fs::read_to_string(&path)?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            events.extend(literals(code));
        }
    }
    Ok(events)
}

/// Literals that are events by their form or by their use.
fn literals(code: &str) -> Vec<String> {
    const BEGINNINGS: &[&str] = &[
        "event = \"",
        "\"init.",
        "\"reinit.",
        "\"epoch.",
        "\"schema.",
        "\"snapshot.",
        "\"agent.",
        "\"command.",
        "\"part.",
        "\"operator.",
        "\"job.",
        "\"lock.",
        "\"node.",
        "\"sequences.",
        "\"switchover.",
        "\"slot.",
        "\"table.",
        "\"tables.",
        "\"verify.",
        "\"overlap.",
        "\"repair.",
        "\"merge.",
    ];
    let mut found = Vec::new();
    for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
        for beginning in BEGINNINGS {
            for (at, _) in line.match_indices(beginning) {
                let quote = at + beginning.find('"').unwrap_or(0);
                let word = line[quote + 1..].split('"').next().unwrap_or_default();
                let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
                if word.chars().all(plain) && !word.ends_with('.') {
                    found.push(word.to_owned());
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_with_more_or_less_than_is_documented_is_found() {
        let documented = Documented::read().unwrap();
        let line = json!({
            "timestamp": "t", "level": "INFO", "target": "x", "message": "m",
            "event": "stopping", "signal": "SIGTERM",
        });
        let check = |line: &Value| documented.check(Program::Agent, line);
        assert_eq!(check(&line).unwrap().as_deref(), Some("stopping"));
        for (name, value) in [
            ("signal", json!(15)),
            ("more", json!("x")),
            ("level", json!("ERROR")),
            ("event", json!("nobody.knows")),
        ] {
            let mut other = line.clone();
            other[name] = value;
            assert!(check(&other).is_err(), "{other}");
        }
        let mut less = line.clone();
        less.as_object_mut().unwrap().remove("signal");
        assert!(check(&less).is_err());
    }

    #[test]
    fn events_in_code_are_found_and_others_are_not() {
        let code = "info!(event = \"ready\", x);\nNote::info(\"init.started\", format!(\"init.{x}\"));\n// \"init.no\"";
        assert_eq!(literals(code), ["ready", "init.started"]);
    }
}
