//! Collects what metrics endpoints have served, and compares expressions of alerts and dashboards
//! with it: names, labels, the values that labels are compared with, and the labels that texts
//! show.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};

use crate::scrape::Scrape;

/// Type and labels of each metric.
pub type Seen = BTreeMap<String, (String, BTreeSet<String>)>;

/// Everything that was served: metrics, and the values of each label.
#[derive(Debug, Default)]
pub struct Served {
    /// Each by name.
    pub metrics: Seen,
    values: BTreeMap<String, BTreeSet<String>>,
}

impl Served {
    /// Adds a scrape.
    ///
    /// # Errors
    /// A metric has another type or other labels than before.
    pub fn add(&mut self, scrape: &Scrape) -> Result<()> {
        let Self { metrics, values } = self;
        for sample in &scrape.samples {
            for (label, value) in &sample.labels {
                values
                    .entry(label.clone())
                    .or_default()
                    .insert(value.clone());
            }
            let base = sample.name.strip_suffix("_total").unwrap_or(&sample.name);
            let kind = scrape
                .types
                .get(base)
                .with_context(|| format!("{base} has no type"))?;
            ensure!(sample.value.is_finite(), "{sample:?}");
            let labels = sample.labels.keys().cloned().collect();
            let entry = (kind.clone(), labels);
            let known = metrics.insert(sample.name.clone(), entry.clone());
            ensure!(known.is_none_or(|known| known == entry), "{sample:?}");
        }
        Ok(())
    }

    /// Compares an expression and its text with what was served.
    ///
    /// # Errors
    /// Names in them that were not served.
    pub fn check(&self, expression: &str, text: &str) -> Result<()> {
        // Prometheus itself adds these.
        let jobs = ["steep-coordinator", "steep-agent"].map(str::to_owned);
        let mut labels: BTreeSet<String> = ["job", "instance"].map(str::to_owned).into();
        let selectors = selectors(expression)?;
        ensure!(!selectors.is_empty(), "no metric in it");
        for Selector { metric, matchers } in &selectors {
            let own = match self.metrics.get(metric) {
                Some((_, own)) => own.clone(),
                None if metric == "up" => BTreeSet::new(),
                None => anyhow::bail!("{metric} is not served"),
            };
            labels.extend(own.clone());
            for (label, operator, value) in matchers {
                ensure!(
                    own.contains(label) || label == "job",
                    "{metric} has no {label}"
                );
                let known = |value: &str| match self.values.get(label) {
                    Some(values) => values.contains(value),
                    None => jobs.iter().any(|job| job == value),
                };
                let values: Vec<&str> = match operator.as_str() {
                    "=" | "!=" => vec![value],
                    "=~" | "!~" => value.split('|').collect(),
                    other => anyhow::bail!("{other} is no operator"),
                };
                for value in values {
                    ensure!(known(value), "{label} is never {value:?}");
                }
            }
        }
        for label in grouped(expression) {
            for Selector { metric, .. } in &selectors {
                let own = self.metrics.get(metric).map(|(_, own)| own);
                ensure!(
                    own.is_none_or(|own| own.contains(&label)),
                    "{metric} has no {label} to be matched on"
                );
            }
        }
        for label in shown(text) {
            ensure!(
                labels.contains(&label),
                "nothing has the {label} that {text:?} shows"
            );
        }
        Ok(())
    }
}

/// A metric in an expression, and what its labels are compared with.
#[derive(Debug, PartialEq, Eq)]
struct Selector {
    metric: String,
    matchers: Vec<(String, String, String)>,
}

fn is_word(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// Every metric in an expression: ours, the process's own, and `up`.
fn selectors(expression: &str) -> Result<Vec<Selector>> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(is_word) {
        let length = rest[at..].find(|c| !is_word(c)).unwrap_or(rest.len() - at);
        let word = &rest[at..at + length];
        rest = &rest[at + length..];
        if !(word.starts_with("steep_") || word.starts_with("process_") || word == "up") {
            continue;
        }
        let mut matchers = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            let (inside, after) = inside.split_once('}').context("a brace")?;
            for matcher in inside.split(',') {
                let (left, value) = matcher.split_once('"').context("a value")?;
                let label: String = left.chars().take_while(|c| is_word(*c)).collect();
                let operator = left[label.len()..].to_owned();
                let value = value.strip_suffix('"').context("a quote")?;
                matchers.push((label, operator, value.to_owned()));
            }
            rest = after;
        }
        found.push(Selector {
            metric: word.to_owned(),
            matchers,
        });
    }
    Ok(found)
}

/// Labels used to match or to group.
fn grouped(expression: &str) -> Vec<String> {
    let mut labels = Vec::new();
    for word in ["on (", "on(", "by (", "by("] {
        for (at, _) in expression.match_indices(word) {
            let inside = expression[at + word.len()..].split(')').next();
            labels.extend(
                inside
                    .into_iter()
                    .flat_map(|all| all.split(',').map(|label| label.trim().to_owned())),
            );
        }
    }
    labels
}

/// Labels that a text shows: `{{ $labels.x }}` of an alert, `{{x}}` of a legend.
fn shown(text: &str) -> Vec<String> {
    text.split("{{")
        .skip(1)
        .filter_map(|rest| rest.split("}}").next())
        .map(str::trim)
        .filter(|inside| !inside.contains("$value"))
        .map(|inside| inside.trim_start_matches("$labels.").to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_that_names_what_is_not_there_is_found() -> Result<()> {
        let mut served = Served::default();
        let set = |words: &[&str]| {
            words
                .iter()
                .map(|w| (*w).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let states = ("gauge".to_owned(), set(&["node", "state"]));
        served.metrics.insert("steep_states".to_owned(), states);
        let none = ("gauge".to_owned(), set(&[]));
        served.metrics.insert("steep_lonely".to_owned(), none);
        served
            .values
            .insert("state".to_owned(), set(&["failed", "copying"]));
        for good in [
            "steep_states{state=\"failed\"} == 1",
            "sum by (node) (steep_states{state!~\"failed|copying\"})",
            "up{job=\"steep-agent\"} == 0",
        ] {
            served.check(good, "{{ $labels.instance }} {{ $value | humanize }}")?;
        }
        served.check("steep_states", "{{node}}: {{ $labels.state }}")?;
        for (bad, text) in [
            ("steep_state == 1", ""),
            ("steep_states{state=\"filed\"}", ""),
            ("steep_states{stat=\"failed\"}", ""),
            ("steep_states{state=~\"failed|filed\"}", ""),
            ("steep_states and on (node) steep_lonely", ""),
            ("up{job=\"steep\"}", ""),
            ("steep_lonely", "{{ $labels.node }}"),
            ("steep_lonely", "{{node}}"),
        ] {
            assert!(served.check(bad, text).is_err(), "{bad} {text}");
        }
        Ok(())
    }
}
