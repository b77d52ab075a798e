//! Which records are meant.

use std::time::UNIX_EPOCH;

use audit_logging::{Clock, Record, Severity, SystemClock};

use super::Leaf;
use crate::cli::{Filter, SeverityChoice};

/// A filter, with its times fixed.
pub(super) struct Wanted<'a> {
    filter: &'a Filter,
    since: Option<i128>,
    until: Option<i128>,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(filter: &'a Filter) -> Self {
        let now = SystemClock::new().wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now = i128::try_from(now).unwrap_or(i128::MAX);
        let fixed = |moment: Option<crate::cli::Moment>| moment.map(|moment| moment.nanoseconds(now));
        Self { filter, since: fixed(filter.since), until: fixed(filter.until) }
    }

    /// Whether the record is among them.
    pub(super) fn has(&self, record: &Record) -> bool {
        let filter = self.filter;
        let severity = match filter.severity {
            None => true,
            Some(SeverityChoice::Critical) => record.severity == Severity::Critical,
            Some(SeverityChoice::Routine) => record.severity == Severity::Routine,
        };
        if !severity || filter.seq.is_some_and(|numbers| !numbers.contains(record.seq)) {
            return false;
        }
        let timed = self.since.is_some() || self.until.is_some();
        if !timed && filter.shard.is_none() && filter.event.is_none() && filter.actor.is_none() {
            return true;
        }
        let leaf = Leaf::of(record);
        let is = |wanted: &Option<String>, field| wanted.as_deref().is_none_or(|wanted| leaf.text(field) == wanted);
        let event = filter.event.as_deref().is_none_or(|event| {
            // The log's own records go by their kind, as `show` prints it, or by what they are about.
            [leaf.text("event"), record.kind.as_str(), leaf.text("log")]
                .iter()
                .any(|name| event.eq_ignore_ascii_case(name))
        });
        let time = !timed
            || leaf.time_ns().is_some_and(|time| {
                self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
            });
        event && time && is(&filter.shard, "shard_id") && is(&filter.actor, "actor")
    }
}
