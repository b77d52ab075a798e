//! `vram audit prove` and `vram audit check-proof`: one record, shown to be in the log by one small file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::note::{Algorithm, Verified, VerifierKey};
use audit_logging::tlog::proof::{self, MAX_PROOF, Proof, ProofError};
use audit_logging::tlog::source::Source;
use audit_logging::tlog::tree::{TILE_WIDTH, Tile, TreeError, read_tile};
use audit_logging::{Kind, Record};
use serde::Serialize;
use serde_json::Value;
use vram_residency::handout::unhex;

use super::keys::{self, KeyOrigin};
use super::place;
use super::show::{self, Line, line};
use crate::cli::{AuditCheckProof, AuditProve, Global};
use crate::exit::Failure;
use crate::output::{Out, Style, printable, rfc3339};
use crate::small_file;

/// A proof that carries its record stays below this. Longer records travel on their own.
const SMALL: usize = 2048;
/// Largest file that may be given as a record.
const MAX_RECORD: u64 = 1 << 20;

/// Every kind of record that is published.
const KINDS: [Kind; 9] = [
    Kind::Event,
    Kind::Gap,
    Kind::Recovered,
    Kind::Finding,
    Kind::Open,
    Kind::Close,
    Kind::Clock,
    Kind::Storage,
    Kind::Publication,
];

#[derive(Serialize)]
struct Made<'a> {
    proof: &'a Path,
    bytes: usize,
    seq: u64,
    tree_index: u64,
    tree_size: u64,
    origin: &'a str,
    carries_record: bool,
}

/// Writes the proof of a record.
pub(super) fn prove(options: &AuditProve, global: &Global, out: &Out) -> Result<(), Failure> {
    let found = place::find(options.log.as_deref(), global)?;
    let Some(published) = found.published else { return Err(unpublished(&found.shown)) };
    let published = &*published;
    let keys = keys::log_keys(&options.trusted, global, published, &found.shown, found.wal.as_deref())?;
    if keys.origin == KeyOrigin::None {
        return Err(Failure::new("key", format!("{} has no key beside it: name it with --vkey", found.shown)));
    }
    let bytes = published.get("checkpoint").map_err(unreadable)?.ok_or_else(|| unpublished(&found.shown))?;
    let (checkpoint, _) = Checkpoint::verify(&bytes, &keys.keys).map_err(|error| refused(&error.into()))?;
    let (index, entry) = match &options.record {
        Some(path) => recognise(published, checkpoint.size, options.seq, entry_in(&read_file(path, MAX_RECORD)?)?)?,
        None => look_up(published, checkpoint.size, options.seq)?,
    };
    let mut proof = proof::prove(published, &keys.keys, index).map_err(|error| refused(&error))?;
    // What does not hold is better noticed here than by whoever it is sent to.
    let proven = proof.check(&entry, &keys.keys, &[], 0).map_err(|error| refused(&error))?;
    proof.extra = Some(entry);
    if proof.to_string().len() > SMALL {
        proof.extra = None;
    }
    let text = proof.to_string();
    let path = options.output.clone().unwrap_or_else(|| PathBuf::from(format!("record-{}.tlog-proof", options.seq)));
    write(&path, text.as_bytes())?;
    let Checkpoint { origin, size, .. } = &proven.checkpoint;
    out.line(format_args!(
        "{} record {} is entry {index} of the {size} that {} signed; the proof is in {} ({} bytes)",
        out.styled(Style::Green, "ok"),
        options.seq,
        printable(origin),
        printable(&path.to_string_lossy()),
        text.len()
    ));
    let carries_record = proof.extra.is_some();
    if !carries_record {
        out.line(format_args!(
            "The record is too long to travel inside: send the line of `vram audit export --format ndjson --seq {}` along.",
            options.seq
        ));
    }
    let (tree_size, bytes) = (*size, text.len());
    out.object(&Made { proof: &path, bytes, seq: options.seq, tree_index: index, tree_size, origin, carries_record });
    Ok(())
}

/// Finds a record among the published entries: its index, and its entry. Numbers only ever grow, by one or more.
fn look_up(source: &dyn Source, size: u64, seq: u64) -> Result<(u64, Vec<u8>), Failure> {
    let absent = |what: &str| Failure::new("audit", format!("record {seq} {what}"));
    // The record with this number has as many before it as there are smaller numbers, or fewer.
    let (mut low, mut high) = (0, size.min(seq).div_ceil(TILE_WIDTH));
    let (mut guess, mut gone) = (high.saturating_sub(1), false);
    while low < high {
        let bundle = read_bundle(source, size, guess)?;
        let Some(bundle) = bundle else {
            // What was pruned is at the beginning.
            gone = true;
            low = guess.saturating_add(1);
            guess = low.saturating_add(high.saturating_sub(low) / 2);
            continue;
        };
        let entries = entry::split(&bundle).map_err(|error| damaged(&error.to_string()))?;
        let number =
            |entry: &&[u8]| Entry::parse(entry).map(|entry| entry.seq).map_err(|error| damaged(&error.to_string()));
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Err(damaged("a bundle of entries is empty"));
        };
        if seq < number(first)? {
            high = guess;
        } else if seq > number(last)? {
            low = guess.saturating_add(1);
        } else {
            for (offset, entry) in (0_u64..).zip(&entries) {
                if number(entry)? == seq {
                    return Ok((guess.saturating_mul(TILE_WIDTH).saturating_add(offset), entry.to_vec()));
                }
            }
            return Err(absent("does not exist: the log says itself that this number carries none"));
        }
        guess = low.saturating_add(high.saturating_sub(low) / 2);
    }
    if gone {
        return Err(absent(
            "was pruned, or is missing; a replica that still has it can prove it (name it behind the number), and so can whoever kept the record (--record)",
        ));
    }
    Err(absent("is not published: it is above the last signed one, or there is none of this number"))
}

/// Finds a record that somebody kept by its hash, which the log keeps for ever.
fn recognise(source: &dyn Source, size: u64, seq: u64, entry: Vec<u8>) -> Result<(u64, Vec<u8>), Failure> {
    let parsed = Entry::parse(&entry).map_err(|error| damaged(&error.to_string()))?;
    if parsed.seq != seq {
        return Err(Failure::usage(format!("--record holds record {} and not record {seq}", parsed.seq)));
    }
    let hash = parsed.hash().0;
    // As many before it as there are smaller numbers, or fewer.
    let last = size.min(seq).saturating_sub(1) / TILE_WIDTH;
    for number in (0..=last).rev() {
        let width = size.saturating_sub(number.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH);
        let tile = u16::try_from(width).ok().and_then(|width| Tile::hashes(0, number, width));
        let Some(tile) = tile else { break };
        let bytes = read_tile(source, tile).map_err(|error| refused(&error.into()))?;
        if let Some(at) = bytes.chunks_exact(hash.len()).position(|there| *there == hash) {
            return Ok((tile.start().saturating_add(at as u64), entry));
        }
    }
    Err(Failure::integrity(
        "proof",
        format!("the log has no record {seq} like the one in --record: it was changed, or is of another log"),
    ))
}

/// A bundle, as it is there: the partial one of this size, or the full one that came after it.
pub(super) fn read_bundle(source: &dyn Source, size: u64, index: u64) -> Result<Option<Vec<u8>>, Failure> {
    let width = size.saturating_sub(index.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH);
    let tile = u16::try_from(width).ok().and_then(|width| Tile::entries(index, width));
    let Some(tile) = tile else { return Ok(None) };
    let bundle = source.get(&tile.path()).map_err(unreadable)?;
    if bundle.is_some() || tile.is_full() {
        return Ok(bundle);
    }
    source.get(&tile.full().path()).map_err(unreadable)
}

#[derive(Serialize)]
struct Checked<'a> {
    valid: bool,
    origin: &'a str,
    tree_size: u64,
    tree_index: u64,
    cosigned_by: Vec<Witnessed<'a>>,
    record: Line<'a>,
}

#[derive(Serialize)]
struct Witnessed<'a> {
    name: &'a str,
    time: Option<u64>,
}

/// Checks a proof, and prints the record that it is about.
pub(super) fn check(options: &AuditCheckProof, out: &Out) -> Result<(), Failure> {
    let log_keys = keys::given(&options.trusted.vkeys, "--vkey", Algorithm::Ed25519)?;
    if log_keys.is_empty() {
        return Err(Failure::usage(
            "a proof is worth as much as the key it is checked with: name the log's with --vkey",
        ));
    }
    let (witnesses, quorum) = keys::witnesses(&options.trusted)?;
    let proof = Proof::parse(&read_file(&options.file, MAX_PROOF as u64)?).map_err(|error| refused(&error))?;
    let entry = match (&options.record, &proof.extra) {
        (Some(path), _) => entry_in(&read_file(path, MAX_RECORD)?)?,
        (None, Some(entry)) => entry.clone(),
        (None, None) => {
            return Err(Failure::usage("the proof does not carry its record: name a file that holds it with --record"));
        }
    };
    let proven = proof.check(&entry, &log_keys, &witnesses, quorum).map_err(|error| refused(&error))?;
    let Entry { seq, kind, severity, leaf } = Entry::parse(&entry).map_err(|error| damaged(&error.to_string()))?;
    let record = Record { seq, severity, kind, durable: 0, leaf: leaf.to_vec(), segment: 0, offset: 0 };
    tell(&proof, &proven.checkpoint, &proven.cosignatures, &log_keys, out);
    show::print_record(&record, out);
    out.object(&Checked {
        valid: true,
        origin: &proven.checkpoint.origin,
        tree_size: proven.checkpoint.size,
        tree_index: proof.index,
        cosigned_by: proven.cosignatures.iter().map(|by| Witnessed { name: &by.name, time: by.time }).collect(),
        record: line(&record, false),
    });
    Ok(())
}

fn tell(proof: &Proof, checkpoint: &Checkpoint, witnesses: &[Verified], keys: &[VerifierKey], out: &Out) {
    let Checkpoint { origin, size, .. } = checkpoint;
    out.line(format_args!(
        "{} this record is entry {} of the {size} that {} signed with a key given ({} known):",
        out.styled(Style::Green, "ok"),
        proof.index,
        printable(origin),
        keys.len()
    ));
    for witness in witnesses {
        let time = witness.time.map(|time| rfc3339(time.saturating_mul(1_000_000_000))).unwrap_or_default();
        out.line(format_args!("   cosigned by {} at {time}", printable(&witness.name)));
    }
}

/// The entry in a file: a line of an export in either format, or the entry's own bytes.
fn entry_in(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    if Entry::parse(bytes).is_ok() {
        return Ok(bytes.to_vec());
    }
    exported(bytes).ok_or_else(|| {
        Failure::usage("--record is neither a line of `vram audit export` nor an entry of the log; export it again")
    })
}

fn exported(bytes: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Plain<'a> {
        #[serde(borrow)]
        record: Option<&'a serde_json::value::RawValue>,
    }
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let row = value.get("unmapped").unwrap_or(&value);
    let text = |field: &str| row.get(field).and_then(Value::as_str);
    let leaf = match (text("record_hex"), text("record")) {
        (Some(hex), _) => unhex(hex)?,
        (None, Some(record)) => record.as_bytes().to_vec(),
        // Verbatim, as it stands in the line.
        (None, None) => serde_json::from_slice::<Plain<'_>>(bytes).ok()?.record?.get().as_bytes().to_vec(),
    };
    let kind = text("kind")?;
    let kind = KINDS.into_iter().find(|known| known.as_str() == kind)?;
    let severity = match text("severity")? {
        "critical" => audit_logging::Severity::Critical,
        "routine" => audit_logging::Severity::Routine,
        _ => return None,
    };
    Some(Entry { seq: row.get("seq")?.as_u64()?, kind, severity, leaf: &leaf }.to_bytes())
}

pub(super) fn unpublished(shown: &str) -> Failure {
    let message = format!(
        "{shown} is not signed: nothing of it can be proven; vram audit keygen makes a key, and the log is signed from \
         the next run on"
    );
    Failure::new("unsigned", message)
}

pub(super) fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::new("audit", error.to_string())
}

fn damaged(what: &str) -> Failure {
    Failure::integrity("audit", what.to_owned())
}

/// A proof that does not hold is an integrity failure; what could not be read or asked for is not.
fn refused(error: &ProofError) -> Failure {
    match error {
        ProofError::Source(_) | ProofError::NoCheckpoint | ProofError::Tree(TreeError::Source(_)) => {
            Failure::new("audit", error.to_string())
        }
        error => Failure::integrity("proof", error.to_string()),
    }
}

/// A small file that was named: no more is read of it than it may have.
pub(super) fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    small_file::read(path, most).map_err(|error| {
        let message = format!("{} cannot be read: {error}; check the path", path.display());
        if error.kind() == io::ErrorKind::FileTooLarge {
            Failure::usage(message)
        } else {
            Failure::new("file", message)
        }
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new("file", format!("{} cannot be written: {error}; name another with -o", path.display()))
    };
    let mut file = std::fs::File::create(path).map_err(cannot)?;
    file.write_all(bytes).map_err(cannot)
}
