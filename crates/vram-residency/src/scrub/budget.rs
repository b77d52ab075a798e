//! How hard to check: a speed, a share of one thread's time, or as fast as it takes.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

/// What the continuous check may cost at most.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// Whatever the period takes.
    Unlimited,
    /// So many bytes in a second.
    BytesPerSecond(NonZeroU64),
    /// So much of one thread's time: more than 0, at most 1.
    Share(f64),
}

impl Budget {
    /// How long to rest after a check of `bytes` that took `took`.
    pub(super) fn rest(self, bytes: u64, took: Duration) -> Duration {
        match self {
            Self::Unlimited => Duration::ZERO,
            Self::BytesPerSecond(speed) => {
                let ns = u128::from(bytes).saturating_mul(1_000_000_000).checked_div(speed.get().into()).unwrap_or(0);
                Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)).saturating_sub(took)
            }
            Self::Share(share) => {
                let rest = took.as_secs_f64() * (1.0 / share - 1.0);
                Duration::try_from_secs_f64(rest).unwrap_or(Duration::from_secs(60))
            }
        }
    }

    pub(super) fn is_sound(self) -> bool {
        match self {
            Self::Unlimited | Self::BytesPerSecond(_) => true,
            Self::Share(share) => share > 0.0 && share <= 1.0,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::BytesPerSecond(speed) => write!(f, "{speed}B/s"),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

impl serde::Serialize for Budget {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a budget is unlimited, a share of one thread's time above 0% and at most 100% such as 5%, or a speed such as 200MiB/s"
)]
pub struct ParseBudgetError;

impl FromStr for Budget {
    type Err = ParseBudgetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let share = percent.trim().parse::<f64>().map_err(|_| ParseBudgetError)? / 100.0;
            return Some(Self::Share(share)).filter(|budget| budget.is_sound()).ok_or(ParseBudgetError);
        }
        let speed = text.strip_suffix("/s").ok_or(ParseBudgetError)?;
        let digits = speed.find(|character: char| !character.is_ascii_digit()).unwrap_or(speed.len());
        let (number, unit) = speed.split_at_checked(digits).ok_or(ParseBudgetError)?;
        let factor: u64 = match unit.trim() {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(ParseBudgetError),
        };
        let number: u64 = number.parse().map_err(|_| ParseBudgetError)?;
        number.checked_mul(factor).and_then(NonZeroU64::new).map(Self::BytesPerSecond).ok_or(ParseBudgetError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_as_they_are_written() {
        let speed = |bytes| Budget::BytesPerSecond(NonZeroU64::new(bytes).unwrap());
        for (text, budget) in [
            ("unlimited", Budget::Unlimited),
            ("1%", Budget::Share(0.01)),
            ("100%", Budget::Share(1.0)),
            ("200MiB/s", speed(200 << 20)),
            ("3 GB/s", speed(3_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(budget), "{text}");
            assert_eq!(budget.to_string().parse(), Ok(budget), "{text}");
        }
        for text in ["", "5", "0%", "-1%", "101%", "NaN%", "0MiB/s", "1XB/s", "MiB/s", "99999999999GiB/s", "inf%"] {
            assert_eq!(text.parse::<Budget>(), Err(ParseBudgetError), "{text}");
        }
    }

    #[test]
    fn the_rest_keeps_the_budget() {
        let took = Duration::from_millis(10);
        assert_eq!(Budget::Unlimited.rest(1 << 20, took), Duration::ZERO);
        assert_eq!(Budget::Share(0.25).rest(1 << 20, took), Duration::from_millis(30));
        let speed = Budget::BytesPerSecond(NonZeroU64::new(10 << 20).unwrap());
        assert_eq!(speed.rest(1 << 20, took), Duration::from_millis(90));
        assert_eq!(speed.rest(1 << 20, Duration::from_secs(1)), Duration::ZERO);
    }
}
