//! A policy in TOML: what must hold of an attestation.
//!
//! Nothing that decides has a default: a policy that forgets to say what memory it asks for is refused, not lax.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use vram_residency::attest::{Policy, uuid};
use vram_residency::device::{DeviceUuid, Protection, Residency};
use vram_residency::digest::Expected;

use crate::exit::Failure;
use crate::small_file;

/// Bytes of a policy, at most.
const LARGEST: u64 = 1 << 20;
/// How far clocks may be apart unless the policy says otherwise.
const SKEW: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    keys: Vec<String>,
    digests: Vec<String>,
    residency: String,
    protection: String,
    max_age: String,
    #[serde(default)]
    complete: bool,
    max_skew: Option<String>,
    #[serde(default)]
    workers: Vec<String>,
    #[serde(default)]
    devices: Vec<String>,
    #[serde(default)]
    log_origins: Vec<String>,
}

/// Reads a policy file.
pub(super) fn read(path: &Path) -> Result<Policy, Failure> {
    let shown = path.display();
    let text = small_file::read_text(path, LARGEST).map_err(|error| {
        let message = format!("the policy {shown} cannot be read: {error}; name a file in TOML");
        match error.kind() {
            io::ErrorKind::FileTooLarge => Failure::usage(message),
            _ => Failure::new("config", message),
        }
    })?;
    parse(&text).map_err(|wrong| Failure::usage(format!("{shown}: {wrong}; docs/attestation.md has every key")))
}

fn parse(text: &str) -> Result<Policy, String> {
    let text: Text = toml::from_str(text).map_err(|error| error.message().replace('\n', " "))?;
    if text.keys.is_empty() || text.digests.is_empty() {
        return Err("keys and digests must each have one entry at least: an empty list would allow nothing".to_owned());
    }
    Ok(Policy {
        keys: each(&text.keys, "keys", |key| key.parse().ok())?,
        digests: each(&text.digests, "digests", |digest| digest.parse::<Expected>().ok())?,
        complete: text.complete,
        residency: one_of(
            &text.residency,
            "residency",
            &[Residency::HostPageable, Residency::HostLocked, Residency::Vram],
        )?,
        protection: one_of(&text.protection, "protection", &[Protection::Advisory, Protection::ReadOnly])?,
        max_age: time(&text.max_age, "max_age")?,
        max_skew: text.max_skew.as_deref().map_or(Ok(SKEW), |skew| time(skew, "max_skew"))?,
        workers: text.workers,
        // As nvidia-smi writes them, too.
        devices: each(&text.devices, "devices", |device| -> Option<DeviceUuid> {
            uuid(device.strip_prefix("GPU-").or_else(|| device.strip_prefix("MIG-")).unwrap_or(device))
        })?,
        log_origins: text.log_origins,
    })
}

fn each<T>(texts: &[String], what: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let value = |text: &String| read(text).ok_or_else(|| format!("{what}: '{text}' cannot be read"));
    texts.iter().map(value).collect()
}

fn one_of<T: Copy + std::fmt::Display>(text: &str, what: &str, known: &[T]) -> Result<T, String> {
    let found = known.iter().copied().find(|value| value.to_string() == text);
    found.ok_or_else(|| {
        let names: Vec<String> = known.iter().map(T::to_string).collect();
        format!("{what} is '{text}' and must be one of: {}", names.join(", "))
    })
}

/// `500ms`, `30s`, `10m`, `24h`.
fn time(text: &str, what: &str) -> Result<Duration, String> {
    let wrong = || format!("{what} is '{text}' and must be a whole number with ms, s, m or h behind it");
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "keys = [\"ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\"]\n\
        digests = [\"sha256:abababababababababababababababababababababababababababababababab\"]\n\
        residency = \"host-locked\"\nprotection = \"read-only\"\nmax_age = \"10m\"\n";

    #[test]
    fn a_policy_says_everything_that_decides() {
        let policy = parse(GOOD).unwrap();
        assert_eq!((policy.max_age, policy.max_skew), (Duration::from_secs(600), SKEW));
        assert_eq!((policy.residency, policy.protection), (Residency::HostLocked, Protection::ReadOnly));
        for line in GOOD.lines() {
            let without = GOOD.replace(line, "");
            assert!(parse(&without).is_err(), "without {line}");
        }
        // A GPU's UUID as nvidia-smi writes it, and as it stands in seals.
        let uuid = "5b1f0f0e-5a0c-4a56-9f0e-0c1d2e3f4a5b";
        let named = parse(&format!("{GOOD}devices = [\"{uuid}\", \"GPU-{uuid}\", \"MIG-{uuid}\"]\n")).unwrap();
        assert!(named.devices.len() == 3 && named.devices.iter().all(|device| device.to_string() == uuid));
        for more in ["extra = 1", "max_skew = \"5\"", "devices = [\"x\"]", "complete = \"yes\"", "max_age = \"1s\""] {
            assert!(parse(&format!("{GOOD}{more}\n")).is_err(), "{more}");
        }
        for (from, to) in [("host-locked", "host"), ("read-only", "ro"), ("10m", "10 parsecs"), ("sha256:", "md5:")] {
            assert!(parse(&GOOD.replace(from, to)).is_err(), "{to}");
        }
        assert!(parse(&GOOD.replace("[\"ed", "[] # \"")).is_err());
    }
}
