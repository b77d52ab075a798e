//! What a section says, line by line as JSON, so that nothing is lost when it is stopped.

use serde::{Deserialize, Serialize};

use crate::report::{Bar, Figure, Table};

/// A line from a section's process to the one that started it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// What the GPU and the driver say of themselves, and whether they are emulated.
    Device { facts: serde_json::Value, emulated: bool },
    /// One figure.
    Figure(Figure),
    /// A table, or more rows of the table with that title.
    Table(Table),
    /// The end; without it the section did not get there.
    End { error: Option<String> },
}

/// Where a section's figures go.
#[derive(Debug)]
pub(crate) struct Sink {
    /// Nothing that an emulated GPU takes time for is a figure.
    pub(crate) emulated: bool,
}

pub(crate) const EMULATED: &str = "not measured: the GPU is emulated, and its clock is simulated";

impl Sink {
    /// A time or rate of this hardware.
    pub(crate) fn timed(&self, name: &str, unit: &str, value: f64, bar: Option<Bar>) {
        if self.emulated {
            self.figure(Figure::missing(name, unit, EMULATED, bar));
        } else if value.is_finite() && value != 0.0 {
            self.figure(Figure::of(name, unit, value, bar));
        } else {
            self.figure(Figure::missing(name, unit, "not measured: it took no time that could be told", bar));
        }
    }

    /// The same, where zero and less are results like any other.
    pub(crate) fn difference(&self, name: &str, unit: &str, value: f64, bar: Option<Bar>) {
        if self.emulated || !value.is_finite() {
            let reason = if self.emulated { EMULATED } else { "not measured: no finite difference" };
            self.figure(Figure::missing(name, unit, reason, bar));
        } else {
            self.figure(Figure::of(name, unit, value, bar));
        }
    }

    /// A count, which is as true on an emulated GPU.
    pub(crate) fn counted(&self, name: &str, unit: &str, value: u64, bar: Option<Bar>) {
        self.figure(Figure::of(name, unit, value as f64, bar));
    }

    /// What could not be measured.
    pub(crate) fn missing(&self, name: &str, unit: &str, reason: &str) {
        self.figure(Figure::missing(name, unit, reason, None));
    }

    fn figure(&self, figure: Figure) {
        self.say(&Line::Figure(figure));
    }

    /// A table; a second one with the same title adds its rows to the first.
    pub(crate) fn table(&self, title: &str, columns: &[&str], rows: Vec<Vec<String>>) {
        let columns = columns.iter().map(ToString::to_string).collect();
        self.say(&Line::Table(Table { title: title.to_owned(), columns, rows }));
    }

    pub(crate) fn say(&self, line: &Line) {
        // A reader that is gone is noticed by its own means.
        if let Ok(text) = serde_json::to_string(line) {
            use std::io::Write as _;
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
    }
}
