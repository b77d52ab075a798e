//! What `cargo xtask bench` prints: medians, spreads and a Markdown table.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One measurement of ours and the peer's beside it.
pub struct Pair {
    pub ours: f64,
    pub peer: f64,
}

#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// One row of the table.
pub struct Row {
    name: &'static str,
    ours: Vec<f64>,
    peer: Vec<f64>,
    /// Of each pair, so that the spread is one of the comparison and not of the machine.
    ratios: Vec<f64>,
    wanted: Option<Wanted>,
}

impl Row {
    /// The ratio is ours over the peer's (`ours_on_top`), or the other way round.
    pub fn compare(name: &'static str, pairs: Vec<Pair>, ours_on_top: bool, wanted: Option<Wanted>) -> Self {
        let ratio = |pair: &Pair| if ours_on_top { pair.ours / pair.peer } else { pair.peer / pair.ours };
        Self {
            name,
            ratios: pairs.iter().map(ratio).collect(),
            ours: pairs.iter().map(|pair| pair.ours).collect(),
            peer: pairs.iter().map(|pair| pair.peer).collect(),
            wanted,
        }
    }

    /// A figure of ours alone.
    pub fn figure(name: &'static str, ours: Vec<f64>, wanted: Wanted) -> Self {
        Self { name, ours, peer: Vec::new(), ratios: Vec::new(), wanted: Some(wanted) }
    }

    /// What is judged: the median of the ratios, or of the figure.
    pub fn middle(&self) -> f64 {
        median(if self.peer.is_empty() { &self.ours } else { &self.ratios })
    }

    pub fn held(&self) -> Option<bool> {
        Some(match self.wanted? {
            Wanted::AtLeast(limit) => self.middle() >= limit,
            Wanted::AtMost(limit) => self.middle() <= limit,
        })
    }

    fn markdown(&self) -> String {
        let spread = |list: &[f64]| {
            let (low, high) = range(list);
            format!("{} ({}–{})", short(median(list)), short(low), short(high))
        };
        let (peer, ratio) = if self.peer.is_empty() {
            (String::from("–"), String::from("–"))
        } else {
            (spread(&self.peer), spread(&self.ratios))
        };
        let wanted = match self.wanted {
            Some(Wanted::AtLeast(limit)) => format!("≥ {}", short(limit)),
            Some(Wanted::AtMost(limit)) => format!("≤ {}", short(limit)),
            None => String::from("–"),
        };
        let held = match self.held() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        format!("| {} | {} | {peer} | {ratio} | {wanted} | {held} |", self.name, spread(&self.ours))
    }
}

/// Everything that is printed and kept.
pub struct Report {
    pub date: String,
    pub facts: Vec<(&'static str, String)>,
    pub rows: Vec<Row>,
    pub details: BTreeMap<String, Vec<f64>>,
}

impl Report {
    pub fn markdown(&self) -> String {
        let mut text = format!("# Bench, {}\n\n", self.date);
        let facts: Vec<String> = self.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let _ = writeln!(text, "{}\n", facts.join("; "));
        text.push_str(
            "By `cargo xtask bench --save`: a 2 GiB file of pseudo-random bytes in the page cache, all cores, the \
             contenders turn\nby turn after a warm-up round. Each cell: median (lowest–highest). Ratios are taken \
             pair by pair. GB = 10^9 bytes.\n\n",
        );
        text.push_str("| what | ours | peer | ratio | wanted | held |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.markdown());
        }
        text.push_str("\nAll that `vram bench --json` said, over the same rounds:\n\n");
        text.push_str("| figure | median | lowest | highest |\n|---|---|---|---|\n");
        for (name, list) in &self.details {
            let (low, high) = range(list);
            let _ = writeln!(text, "| {name} | {} | {} | {} |", short(median(list)), short(low), short(high));
        }
        text
    }
}

/// Every number in the objects by its path, whatever fields they have: a new one shows up by itself.
pub fn details<'a>(objects: impl Iterator<Item = &'a Value>) -> BTreeMap<String, Vec<f64>> {
    let mut found = BTreeMap::new();
    for object in objects {
        collect("", object, &mut found);
    }
    found
}

fn collect(path: &str, value: &Value, found: &mut BTreeMap<String, Vec<f64>>) {
    match value {
        Value::Number(number) => found.entry(path.to_owned()).or_default().extend(number.as_f64()),
        Value::Array(list) => list.iter().for_each(|value| collect(path, value, found)),
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(&path, value, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn at<'a>(object: &'a Value, path: &[&str]) -> Result<&'a Value> {
    let found = path.iter().try_fold(object, |value, key| value.get(key));
    found.with_context(|| format!("`vram bench --json` lacks `{}`", path.join(".")))
}

pub fn number(object: &Value, path: &[&str]) -> Result<f64> {
    at(object, path)?.as_f64().with_context(|| format!("`{}` is not a number", path.join(".")))
}

/// A list of numbers, at least one.
pub fn numbers(object: &Value, path: &[&str]) -> Result<Vec<f64>> {
    let list = at(object, path)?.as_array().into_iter().flatten().filter_map(Value::as_f64);
    let list: Vec<f64> = list.collect();
    if list.is_empty() {
        bail!("`{}` in the output of `vram bench --json` holds no numbers", path.join("."));
    }
    Ok(list)
}

/// The median; not a number for an empty list, which the table then shows as such.
pub fn median(list: &[f64]) -> f64 {
    let mut sorted = list.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(middle), middle.checked_sub(1).and_then(|at| sorted.get(at))) {
        (1, Some(middle), _) => *middle,
        (0, Some(right), Some(left)) => (left + right) / 2.0,
        _ => f64::NAN,
    }
}

fn range(list: &[f64]) -> (f64, f64) {
    (list.iter().copied().fold(f64::NAN, f64::min), list.iter().copied().fold(f64::NAN, f64::max))
}

/// Four digits that count, no more: the rest is noise.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_missed_limit_is_said_aloud() {
        let pairs = vec![Pair { ours: 1.3, peer: 1.0 }, Pair { ours: 1.4, peer: 1.0 }, Pair { ours: 1.2, peer: 1.0 }];
        let row = Row::compare("seal", pairs, true, Some(Wanted::AtMost(1.25)));
        let expected = "| seal | 1.300 (1.200–1.400) | 1.000 (1.000–1.000) | 1.300 (1.200–1.400) | ≤ 1.250 | **no** |";
        assert_eq!(row.markdown(), expected);
    }

    #[test]
    fn every_number_is_listed_by_its_path() -> Result<()> {
        let object = serde_json::from_str(r#"{"a":{"b":1,"c":[2,3]},"ok":true,"name":"x"}"#)?;
        let found = details([&object, &object].into_iter());
        let shown: Vec<_> = found.iter().map(|(path, list)| (path.as_str(), list.len())).collect();
        assert_eq!(shown, [("a.b", 2), ("a.c", 4)]);
        Ok(())
    }
}
