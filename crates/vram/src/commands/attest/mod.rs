//! `vram attest`: asks the daemon for its signed word, checks one offline, makes the key.

mod policy;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::UNIX_EPOCH;

use audit_logging::{Clock, SystemClock};
use hyper::Method;
use serde::Serialize;
use serde_json::json;
use vram_residency::attest::envelope::{Envelope, MAX_ENVELOPE};
use vram_residency::attest::statement::{DeviceFacts, Predicate, Statement, Subject};
use vram_residency::attest::{self, AttestKey, Nonce};
use vram_residency::digest::Digest;

use super::control::Daemon;
use crate::cli::Attest;
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::{Out, Style, printable, rfc3339, size};
use crate::{small_file, state};

/// Does one of the three.
pub(super) fn run(options: &Attest, out: &Out) -> Result<(), Failure> {
    match (options.keygen, &options.check, &options.policy, &options.nonce) {
        (true, ..) => keygen(options, out),
        (false, Some(file), Some(policy), nonce) => check(file, policy, nonce.as_ref(), out),
        (false, _, _, Some(nonce)) => ask(options, nonce, out),
        _ => Err(Failure::usage("say --nonce to ask, --check with --policy to check, or --keygen")),
    }
}

/// Has the daemon attest, and passes on what it says, byte for byte.
fn ask(options: &Attest, nonce: &Nonce, out: &Out) -> Result<(), Failure> {
    let shards: Vec<&str> = options.shards.iter().map(vram_residency::ShardId::as_str).collect();
    let body = json!({ "nonce": nonce.to_string(), "shards": shards });
    let envelope = Daemon::new(&options.socket)?.ask_bytes(Method::POST, "/v1/attest", Some(&body))?;
    // Shown here only; whoever checks it reads it behind the signature.
    let statement = Envelope::parse(&envelope).and_then(|said| Statement::parse(said.unverified())).ok();
    let log = statement.and_then(|statement| statement.predicate.audit_log);
    let is_signed = log.is_some_and(|log| log.checkpoint.is_some());
    let unsigned = "the audit log is not signed, so the attestation names no checkpoint of it; vram audit keygen";
    let Some(path) = &options.output else {
        out.verbatim(&envelope);
        if !is_signed {
            out.warn(format_args!("note: {unsigned}"));
        }
        return Ok(());
    };
    let shown = path.display();
    let written = File::create(path).and_then(|mut file| file.write_all(&envelope).and_then(|()| file.sync_all()));
    written.map_err(|error| {
        Failure::new("output", format!("{shown} cannot be written: {error}; name another file with --output"))
    })?;
    let digest = Digest::of(&envelope);
    out.line(format_args!("{} attested, {} bytes in {shown}", out.styled(Style::Green, "ok"), envelope.len()));
    out.line(format_args!("  BLAKE3      {digest}, of the file, and the envelope of the record AttestationMade"));
    if !is_signed {
        out.line(format_args!("  note        {unsigned}"));
    }
    out.object(&json!({ "file": path, "bytes": envelope.len(), "envelope": digest, "log_signed": is_signed }));
    Ok(())
}

#[derive(Serialize)]
struct Believed<'a> {
    ok: bool,
    key: String,
    /// BLAKE3 of the file: the record of the attestation has it as its envelope.
    envelope: Digest,
    age_seconds: f64,
    nonce_checked: bool,
    statement: &'a Statement,
}

/// Believes an attestation or says why not.
fn check(file: &Path, policy: &Path, nonce: Option<&Nonce>, out: &Out) -> Result<(), Failure> {
    let policy = policy::read(policy)?;
    let bytes = read(file)?;
    let now = SystemClock::new().wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let checked = attest::check(&bytes, &policy, nonce, now_ns)
        .map_err(|refusal| Failure::integrity("attestation", refusal.to_string()))?;
    if nonce.is_none() {
        out.warn("warning: without --nonce an older attestation, up to the policy's max_age, would be believed too");
    }
    let predicate = &checked.statement.predicate;
    out.line(format_args!(
        "{} {} attested by {} on {}",
        out.styled(Style::Green, "ok"),
        count(predicate.shards.len(), "shard"),
        printable(&predicate.worker_id),
        count(predicate.devices.len(), "device"),
    ));
    for device in &predicate.devices {
        show(device, predicate, &checked.statement.subject, out);
    }
    out.line(format_args!("  signed      {}, {:.1} s ago", rfc3339(predicate.attested_at), checked.age.as_secs_f64()));
    out.line(format_args!("  key         {}", checked.key_id));
    let envelope = Digest::of(&bytes);
    out.line(format_args!("  BLAKE3      {envelope}, of the file, and the envelope of the record AttestationMade"));
    match &predicate.audit_log {
        Some(log) => {
            let signed = match &log.checkpoint {
                Some(point) => format!("checkpoint {} of {}", point.size, printable(&point.origin)),
                None => "not signed: no checkpoint".to_owned(),
            };
            let last = log.sequence;
            out.line(format_args!(
                "  audit log   record {last} was its last one when this was signed, and AttestationMade comes behind it; \
                 {signed}"
            ));
        }
        None => out.line("  audit log   none"),
    }
    out.object(&Believed {
        ok: true,
        key: checked.key_id.to_string(),
        envelope,
        age_seconds: checked.age.as_secs_f64(),
        nonce_checked: nonce.is_some(),
        statement: &checked.statement,
    });
    Ok(())
}

/// A device, and under it what lies on it.
fn show(device: &DeviceFacts, predicate: &Predicate, subjects: &[Subject], out: &Out) {
    let DeviceFacts { kind, uuid, driver } = device;
    let on_it = || subjects.iter().zip(&predicate.shards).filter(|(_, shard)| shard.device == *uuid);
    let bytes = on_it().fold(0_u64, |sum, (_, shard)| sum.saturating_add(shard.bytes));
    out.line(format_args!(
        "  {kind} {uuid}  {}, {}  ({} {}, {})",
        count(on_it().count(), "shard"),
        size(bytes),
        printable(&driver.name),
        printable(&driver.version),
        printable(&driver.machine),
    ));
    for (subject, shard) in on_it() {
        out.line(format_args!(
            "    {}  {}  {}, {}  {}",
            printable(&subject.name),
            size(shard.bytes),
            shard.residency,
            shard.protection,
            subject.digest.blake3
        ));
    }
}

/// The bytes of an attestation. One that is longer than any that is made is not believed either.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    small_file::read(path, u64::try_from(MAX_ENVELOPE).unwrap_or(u64::MAX)).map_err(|error| {
        if error.kind() == io::ErrorKind::FileTooLarge {
            Failure::integrity("attestation", format!("{shown} is no attestation: {error}; check the path"))
        } else {
            Failure::new("file", format!("the attestation {shown} cannot be read: {error}; check the path"))
        }
    })
}

fn keygen(options: &Attest, out: &Out) -> Result<(), Failure> {
    let (path, _) = state::attest_key_path(options.attest_key.as_deref())?;
    let key = AttestKey::generate().map_err(|error| Failure::new("key", error.to_string()))?;
    let cannot = |path: &Path, error: &io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AlreadyExists => {
                "nothing was changed; for a new key move both files away first (rotating: docs/attestation.md), or name another \
                 place with --attest-key"
            }
            _ => "check the path and its permissions, or name another with --attest-key",
        };
        Failure::new("key", format!("{} cannot be made: {error}; {remedy}", path.display()))
    };
    // What others are given is there before anything can be signed.
    let public = path.with_extension("pub");
    if !state::is_absent(&path) {
        return Err(cannot(&path, &io::ErrorKind::AlreadyExists.into()));
    }
    state::write_new(&public, key.public().to_pem().as_bytes(), 0o644).map_err(|error| cannot(&public, &error))?;
    state::write_new(&path, key.to_pem().as_bytes(), 0o600).map_err(|error| cannot(&path, &error))?;
    out.line(key.public());
    let (key_file, public_file) = (printable(&path.to_string_lossy()), printable(&public.to_string_lossy()));
    out.line(format_args!("{} the key is in {key_file}, readable by you alone", out.styled(Style::Green, "ok")));
    out.line(format_args!(
        "The line above goes into the policies of those who check; {public_file} is the same for other tools."
    ));
    out.object(&json!({
        "public_key": key.public().to_string(),
        "key_id": key.public().id().to_string(),
        "key_file": path,
        "public_file": public,
    }));
    Ok(())
}
