//! What is printed: text for people or JSON for programs on stdout, everything else on stderr.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use crate::exit::Failure;

pub(crate) use vram_residency::handout::hex;

/// Standard output and error. A reader that goes away (`| head`) ends the printing, not the work.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) json: bool,
    colour: bool,
    closed: Cell<bool>,
    broken: Cell<Option<io::ErrorKind>>,
}

/// How a word stands out on a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = !json && io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Self { json, colour, closed: Cell::new(false), broken: Cell::new(None) }
    }

    /// The same for a command that prints nothing but JSON, whatever was asked for.
    pub(crate) fn for_programs(&self) -> Self {
        Self { json: true, colour: false, closed: self.closed.clone(), broken: self.broken.clone() }
    }

    /// A line of text for people; nothing where JSON was asked for.
    pub(crate) fn line(&self, text: impl Display) {
        if !self.json {
            self.write(format!("{text}\n").as_bytes());
        }
    }

    /// An object for programs, on one line; nothing where text was asked for.
    pub(crate) fn object(&self, object: &impl Serialize) {
        if self.json {
            // Only a value that refuses to be serialized could fail here, and ours do not.
            let text = serde_json::to_string(object).unwrap_or_default();
            self.write(format!("{text}\n").as_bytes());
        }
    }

    /// Text that is made for programs in any case, as it is.
    pub(crate) fn verbatim(&self, text: &[u8]) {
        self.write(text);
    }

    /// Something that deserves attention and stops nothing.
    #[expect(clippy::unused_self, reason = "whoever prints has this at hand")]
    pub(crate) fn warn(&self, text: impl Display) {
        let _ = writeln!(io::stderr(), "vram: {}", printable(&text.to_string()));
    }

    /// The failure that ends the program.
    pub(crate) fn failure(&self, failure: &Failure) {
        #[derive(Serialize)]
        struct Report<'a> {
            error: &'a Failure,
        }
        self.warn(&failure.message);
        if !failure.in_report {
            self.object(&Report { error: failure });
        }
    }

    /// Whether nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Makes sure that everything was printed.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        if !self.is_closed()
            && let Err(error) = io::stdout().flush()
        {
            self.note(&error);
        }
        match self.broken.get() {
            None => Ok(()),
            Some(kind) => Err(Failure::new(
                "output",
                format!("standard output cannot be written: {kind}; free the disk or redirect it"),
            )),
        }
    }

    /// The text, standing out where stdout is a terminal that shows it, and [`printable`].
    pub(crate) fn styled(&self, style: Style, text: impl Display) -> String {
        let code = match style {
            Style::Bold => 1,
            Style::Dim => 2,
            Style::Red => 31,
            Style::Green => 32,
            Style::Yellow => 33,
        };
        let text = printable(&text.to_string());
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
    }

    fn write(&self, text: &[u8]) {
        if self.closed.get() || self.broken.get().is_some() {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(text).and_then(|()| stdout.flush()) {
            self.note(&error);
        }
    }

    fn note(&self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::BrokenPipe => self.closed.set(true),
            kind => self.broken.set(Some(kind)),
        }
    }
}

/// A size as people read it: `254.1 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 30_u32), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / f64::from(1 << shift)),
        None => format!("{bytes} bytes"),
    }
}

/// 10^9 bytes per second.
pub(crate) fn gb_per_s(bytes: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { bytes as f64 / seconds / 1e9 } else { 0.0 }
}

/// A duration as people read it: `0.31 s`, `4.2 ms`.
pub(crate) fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 0.1 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.001 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{:.0} µs", seconds * 1e6),
    }
}

/// Nanoseconds since 1970 as RFC 3339.
pub(crate) fn rfc3339(nanoseconds: u64) -> String {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default().to_string()
}

/// Text from elsewhere on one line, without anything that a terminal would obey or show in another order.
pub(crate) fn printable(text: &str) -> String {
    let obeyed = |character: char| {
        character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|character| if obeyed(character) { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_for_people() {
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(266_338_304), "254.0 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(time(Duration::from_millis(310)), "0.31 s");
        assert_eq!(time(Duration::from_micros(4200)), "4.2 ms");
        assert_eq!(time(Duration::from_nanos(90_400)), "90 µs");
        assert!((gb_per_s(2_000_000_000, Duration::from_secs(1)) - 2.0).abs() < 1e-9);
        assert_eq!(rfc3339(1_500_000_000), "1970-01-01T00:00:01.5Z");
        assert_eq!(printable("a\x1b[31mb\n\u{9b}\u{202e}"), "a\u{fffd}[31mb\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(printable("żółw 亀 🐢"), "żółw 亀 🐢");
    }
}
