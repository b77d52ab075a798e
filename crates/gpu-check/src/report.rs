//! The results: as JSON, as Markdown, and as a table on the terminal.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What a figure has to reach on the card that it names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// At least this much, or at most.
    pub(crate) least: bool,
    pub(crate) limit: f64,
    pub(crate) goal: f64,
    /// Holds on an H200 only; otherwise on every card.
    pub(crate) h200: bool,
}

impl Bar {
    pub(crate) const fn at_least(limit: f64, goal: f64) -> Option<Self> {
        Some(Self { least: true, limit, goal, h200: true })
    }

    pub(crate) const fn at_most(limit: f64) -> Option<Self> {
        Some(Self { least: false, limit, goal: limit, h200: true })
    }

    /// On whatever card.
    pub(crate) const fn everywhere(limit: f64) -> Option<Self> {
        Some(Self { least: false, limit, goal: limit, h200: false })
    }
}

/// One figure: a value, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) value: Option<f64>,
    pub(crate) reason: Option<String>,
    pub(crate) bar: Option<Bar>,
    /// Whether it reached its bar; none where it has none, or was not measured, or the card is another.
    pub(crate) met: Option<bool>,
}

impl Figure {
    pub(crate) fn of(name: &str, unit: &str, value: f64, bar: Option<Bar>) -> Self {
        Self { name: name.to_owned(), unit: unit.to_owned(), value: Some(value), reason: None, bar, met: None }
    }

    pub(crate) fn missing(name: &str, unit: &str, reason: &str, bar: Option<Bar>) -> Self {
        let reason = Some(reason.to_owned());
        Self { name: name.to_owned(), unit: unit.to_owned(), value: None, reason, bar, met: None }
    }

    /// Holds it against its bar, as far as the bar is for this card.
    pub(crate) fn judge(&mut self, card: &str) {
        let applies = |bar: &Bar| !bar.h200 || card.contains("H200");
        self.met = self
            .bar
            .filter(applies)
            .zip(self.value)
            .map(|(bar, value)| if bar.least { value >= bar.limit } else { value <= bar.limit });
    }

    fn shown(&self) -> String {
        match self.value {
            Some(value) if value == value.trunc() && value.abs() < 1e15 => format!("{value} {}", self.unit),
            Some(value) if value.abs() < 0.01 => format!("{value:.5} {}", self.unit),
            Some(value) => format!("{value:.3} {}", self.unit),
            None => String::from("-"),
        }
    }

    fn remark(&self) -> String {
        let met = match self.met {
            Some(true) => ": met",
            Some(false) => ": MISSED",
            None if self.value.is_some() => ": another card, not judged",
            None => "",
        };
        let bar = self.bar.map(|bar| {
            let (word, unit) = (if bar.least { "at least" } else { "at most" }, &self.unit);
            let card = if bar.h200 { " on an H200" } else { "" };
            let goal = if bar.goal == bar.limit { String::new() } else { format!(", goal {}", bar.goal) };
            format!("{word} {} {unit}{goal}{card}{met}", bar.limit)
        });
        [self.reason.clone(), bar].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// What is no single number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// How a section ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Ok,
    Failed,
    TimedOut,
    Skipped,
}

/// One section.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) status: Status,
    pub(crate) seconds: f64,
    pub(crate) error: Option<String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) tables: Vec<Table>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) tool: &'static str,
    pub(crate) version: &'static str,
    /// RFC 3339, UTC.
    pub(crate) started: String,
    /// None: no GPU could be opened.
    pub(crate) emulated: Option<bool>,
    pub(crate) device: Option<serde_json::Value>,
    /// Sizes for an emulated GPU.
    pub(crate) small: bool,
    pub(crate) sections: Vec<Section>,
}

impl Report {
    pub(crate) fn card(&self) -> &str {
        let name = self.device.as_ref().and_then(|device| device.get("name")).and_then(serde_json::Value::as_str);
        name.unwrap_or("no GPU")
    }

    fn device_text(&self, key: &str) -> &str {
        self.device.as_ref().and_then(|device| device.get(key)).and_then(serde_json::Value::as_str).unwrap_or("unknown")
    }

    /// Whether every section ran and went well.
    pub(crate) fn good(&self) -> bool {
        self.sections.iter().all(|section| section.status == Status::Ok)
    }

    /// Writes both files, each of them whole or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        for (name, text) in [("gpu-check.json", json + "\n"), ("gpu-check.md", self.markdown())] {
            let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
            let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
            written.with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }

    fn heading(&self) -> String {
        match self.emulated {
            Some(true) => format!("GPU check on an EMULATED GPU ({}): nothing here is about hardware", self.card()),
            _ => format!("GPU check: {}", self.card()),
        }
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.heading());
        let sizes = if self.small { ", small sizes" } else { "" };
        let _ = writeln!(text, "Made by `vram-gpu-check` {}{sizes}, {}.\n", self.version, self.started);
        let _ = writeln!(text, "| | |\n|---|---|\n| card | {} |", self.card());
        let (driver, library) = (self.device_text("driver"), self.device_text("library"));
        let _ = writeln!(text, "| driver | CUDA {driver}, `{library}` |");
        for section in &self.sections {
            let _ = writeln!(text, "\n## {}\n", section.title);
            let _ = writeln!(text, "{:?}, {:.1} s{}", section.status, section.seconds, section.why());
            if !section.figures.is_empty() {
                let _ = writeln!(text, "\n| figure | value | remark |\n|---|---|---|");
            }
            for figure in &section.figures {
                let _ = writeln!(text, "| {} | {} | {} |", figure.name, figure.shown(), figure.remark());
            }
            for table in &section.tables {
                let _ = writeln!(text, "\n{}\n\n| {} |", table.title, table.columns.join(" | "));
                let _ = writeln!(text, "|{}", "---|".repeat(table.columns.len()));
                for row in &table.rows {
                    let _ = writeln!(text, "| {} |", row.join(" | "));
                }
            }
        }
        text
    }

    /// For the terminal.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("\n{}, {}\n", self.heading(), self.started);
        for section in &self.sections {
            text += &section.shown();
        }
        text
    }
}

impl Section {
    fn why(&self) -> String {
        self.error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
    }

    pub(crate) fn shown(&self) -> String {
        let mut text = format!("\n{:<14} {:?} in {:.1} s{}\n", self.name, self.status, self.seconds, self.why());
        for figure in &self.figures {
            let _ = writeln!(text, "  {:<58} {:>16}  {}", figure.name, figure.shown(), figure.remark());
        }
        for table in &self.tables {
            let _ = writeln!(text, "  {}: {}", table.title, table.columns.join(", "));
            for row in &table.rows {
                let _ = writeln!(text, "    {}", row.join(", "));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_judged_on_its_own_card_and_never_without_a_value() {
        let mut figure = Figure::of("a", "TB/s", 1.5, Bar::at_least(1.4, 2.0));
        figure.judge("NVIDIA H100");
        assert_eq!(figure.met, None);
        figure.judge("NVIDIA H200");
        assert_eq!(figure.met, Some(true));
        figure.value = Some(1.3);
        figure.judge("NVIDIA H200");
        assert_eq!(figure.met, Some(false));
        let mut missing = Figure::missing("a", "ms", "no time", Bar::at_most(50.0));
        missing.judge("NVIDIA H200");
        assert_eq!((missing.met, missing.value), (None, None));
        let mut anywhere = Figure::of("a", "allocations", 0.0, Bar::everywhere(0.0));
        anywhere.judge("any");
        assert_eq!(anywhere.met, Some(true));
    }
}
