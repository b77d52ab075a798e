//! `vram demo`: the whole story in ten seconds, and every claim in it checked.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::reader;
use serde::Serialize;
use vram_residency::device::{DeviceInfo, HugePages, Protection, Residency};
use vram_residency::digest::{BLOCK_BYTES, Digest};
use vram_residency::model::{Format, ModelFile};
use vram_residency::{
    BlockDamage, Error, Policy, SealRequest, SealedShard, ShardId, ShardState, VerifyFailure, VramManager,
};
use zeroize::Zeroizing;

use crate::cli::{Demo, Global};
use crate::commands::audit::events_after;
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::{Out, Style, gb_per_s, printable, size, time};
use crate::sample::Scratch;
use crate::session::{self, Trail};
use crate::{sample, state};

/// What must be in the log afterwards, in this order.
const STORY: [&str; 10] = [
    "VramAllocated",
    "VramSealed",
    "SealVerified",
    "FaultInjected",
    "SealVerificationFailed",
    "RepairStarted",
    "BlockRepaired",
    "SealVerified",
    "SealVerified",
    "VramDeallocated",
];

#[derive(Serialize)]
struct Report {
    detected: bool,
    tensor: Box<str>,
    block: u64,
    byte: u64,
    bit: u8,
    repaired: bool,
    audit_verified: bool,
    seed: u64,
    bytes: u64,
    tensors: usize,
    digest: Digest,
    device: DeviceInfo,
    residency: Residency,
    protection: Protection,
    seconds: Seconds,
    gb_per_s: Speeds,
    audit: AuditReport,
}

#[derive(Serialize)]
struct Seconds {
    generate: f64,
    seal: f64,
    verify: f64,
    detect: f64,
    repair: f64,
    verify_again: f64,
    total: f64,
}

#[derive(Serialize)]
struct Speeds {
    seal: f64,
    verify: f64,
}

#[derive(Serialize)]
struct AuditReport {
    records: u64,
    segments: u64,
}

/// The bit that is flipped.
#[derive(Debug, Clone)]
struct Target {
    byte: u64,
    bit: u8,
    tensor: Box<str>,
}

/// Numbered steps on stdout.
struct Steps<'a> {
    out: &'a Out,
    number: u32,
}

impl Steps<'_> {
    fn done(&mut self, title: &str, text: &str) {
        self.number = self.number.saturating_add(1);
        let title = self.out.styled(Style::Bold, format_args!("{title:<8}"));
        self.out.line(format_args!("{:2}. {title}  {text}", self.number));
    }

    fn detail(&self, text: &str) {
        self.out.line(format_args!("              {}", self.out.styled(Style::Dim, text)));
    }
}

/// The file in which the model is kept. One that is not filled is removed.
struct Kept<'a> {
    path: &'a Path,
    file: Option<File>,
}

impl<'a> Kept<'a> {
    fn begin(path: &'a Path) -> Result<Self, Failure> {
        let file = File::create_new(path).map_err(|error| cannot_keep(path, &error))?;
        Ok(Self { path, file: Some(file) })
    }

    fn finish(mut self, model: &Path) -> Result<(), Failure> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let copied = File::open(model).and_then(|mut model| io::copy(&mut model, file));
        copied.map_err(|error| cannot_keep(self.path, &error))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn cannot_keep(path: &Path, error: &io::Error) -> Failure {
    let message = format!("the model cannot be kept in {}: {error}; name another file with --keep", path.display());
    Failure::new("file", message)
}

/// Tells the story.
pub(super) fn run(demo: &Demo, global: &Global, out: &Out) -> Result<(), Failure> {
    let begun = Instant::now();
    let seed = match demo.seed {
        Some(seed) => seed,
        // Small enough that every reader of JSON keeps it exactly.
        None => getrandom::u64().map_err(|error| Failure::new("random", error.to_string()))? >> 11,
    };
    let mut steps = Steps { out, number: 0 };
    out.line(format_args!("{}\n", out.styled(Style::Bold, "vram demo: one flipped bit, found, named and repaired")));

    if let Some(dir) = &global.audit_dir {
        look_for_older_damage(dir)?;
    }
    // Before anything is done: a file of somebody's is never overwritten.
    let kept = demo.keep.as_deref().map(Kept::begin).transpose()?;
    let scratch = Scratch::new(demo.dir.as_deref(), "demo")?;
    let path = scratch.path().join("model.safetensors");
    let device = session::host_device(&demo.host, HugePages::Ask)?;
    sample::check_room(scratch.path(), demo.size << 20, &device)?;
    let started = Instant::now();
    sample::write(&path, demo.size << 20, device.threads())?;
    let generate = started.elapsed();
    let file = ModelFile::open(&path, Some(Format::Safetensors))?;
    let bytes = file.len();
    let made = format!(
        "{} of safetensors, {} tensors, shaped like a small Llama, made in {}",
        size(bytes),
        file.table().len(),
        time(generate)
    );
    steps.done("Model", &made);
    steps.detail(&path.display().to_string());

    let audit_dir = global.audit_dir.clone().unwrap_or_else(|| scratch.path().join("audit"));
    // The record is part of what is shown: without a log there is nothing to show.
    let trail = Trail::open_at(&audit_dir)?;
    let before = trail.log_status().map_or(0, |status| status.durable);
    let worker_id = session::worker_id(global);
    let secret = secret(global)?;
    let manager = session::manager(worker_id, &secret, Arc::new(device), &trail, Policy::default())?;
    drop(secret);

    let started = Instant::now();
    let shard = manager.seal_file(&file, &SealRequest::new(ShardId::from_name("demo"), "vram demo"))?;
    let seal = started.elapsed();
    let (digest, residency, protection) = (shard.digest(), shard.residency(), shard.protection());
    steps.done("Seal", &format!("copied, hashed and signed in {} ({:.2} GB/s)", time(seal), gb_per_s(bytes, seal)));
    steps.detail(&format!("{digest}, what b3sum prints for the file"));
    steps.detail(&format!("{residency}, {protection}"));

    let verify = manager.verify_sealed(&shard)?.duration;
    let every = format!("every byte in memory is as sealed, {} ({:.2} GB/s)", time(verify), gb_per_s(bytes, verify));
    steps.done("Verify", &good(out, &every));

    let target = choose(&file, seed)?;
    manager.inject_fault(&shard, target.byte, target.bit)?;
    steps.done("Damage", &format!("one bit of {} flipped in the resident memory (seed {seed})", with_commas(bytes)));

    let (block, detect) = detect(&manager, &shard, &target)?;
    steps.done("Verify", &bad(out, &format!("block {block} is not as sealed, found in {}", time(detect))));
    steps.detail("the shard is quarantined: its bytes are not lent out, and that is on disk in the audit log");

    let started = Instant::now();
    let damage = repair(&manager, &shard, &file, &target)?;
    let repair = started.elapsed();
    let named =
        format!("tensor {}, block {block}, byte {}, bit {}", target.tensor, damage.first_byte, damage.first_bit);
    steps.done("Repair", &good(out, &format!("{named}: put right in {}", time(repair))));
    steps.detail("the block came from the file, was held against its sealed value, written and read back");

    let verified = manager.verify_sealed(&shard)?;
    require(verified.digest == digest && shard.state() == ShardState::Verified, "the repaired shard is verified")?;
    let again = verified.duration;
    let every =
        format!("every byte in memory is as sealed again, {} ({:.2} GB/s)", time(again), gb_per_s(bytes, again));
    steps.done("Verify", &good(out, &every));

    if let Some(kept) = kept {
        kept.finish(&path)?;
    }
    let info = manager.device();
    drop(shard);
    drop(manager);
    let audit = check_log(&audit_dir, trail, before, out)?;
    let told = format!("{} verified, the whole story among them", count(audit.records, "record"));
    steps.done("Audit", &good(out, &told));
    let yours = demo.keep.as_ref().map_or_else(|| "FILE".to_owned(), |path| printable(&path.to_string_lossy()));
    out.line(format_args!("\nDone in {}. Now your own: vram seal {yours}", time(begun.elapsed())));

    out.object(&Report {
        detected: true,
        tensor: target.tensor,
        block,
        byte: target.byte,
        bit: target.bit,
        repaired: true,
        audit_verified: true,
        seed,
        bytes,
        tensors: file.table().len(),
        digest,
        device: info,
        residency,
        protection,
        seconds: Seconds {
            generate: generate.as_secs_f64(),
            seal: seal.as_secs_f64(),
            verify: verify.as_secs_f64(),
            detect: detect.as_secs_f64(),
            repair: repair.as_secs_f64(),
            verify_again: again.as_secs_f64(),
            total: begun.elapsed().as_secs_f64(),
        },
        gb_per_s: Speeds { seal: gb_per_s(bytes, seal), verify: gb_per_s(bytes, verify.min(again)) },
        audit,
    });
    Ok(())
}

/// A log that is damaged already is no defect of what is shown here.
fn look_for_older_damage(dir: &Path) -> Result<(), Failure> {
    // Whatever else may be wrong with the directory is told when the log is opened.
    let report = reader::verify(dir).ok();
    match report.as_ref().and_then(|report| report.violations.first()) {
        None => Ok(()),
        Some(finding) => Err(session::damaged(dir, finding)),
    }
}

/// A secret for this run alone, unless a file is named.
fn secret(global: &Global) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if global.key_file.is_some() {
        return state::secret(global);
    }
    let mut secret = Zeroizing::new(vec![0; 32]);
    getrandom::fill(&mut secret).map_err(|error| Failure::new("random", error.to_string()))?;
    Ok(secret)
}

/// A bit inside a tensor, by the seed.
fn choose(file: &ModelFile, seed: u64) -> Result<Target, Failure> {
    // SplitMix64: neighbouring seeds give bits that are far apart.
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let data = file.len().saturating_sub(file.data_start());
    let place = (z >> 3).checked_rem(data).unwrap_or(0);
    let byte = file.data_start().saturating_add(place);
    let tensor = file.table().locate(byte).map(|tensor| tensor.name.clone());
    let tensor = tensor.ok_or_else(|| Failure::new("model", "the model made for the demo has no tensors"))?;
    Ok(Target { byte, bit: (z & 7) as u8, tensor })
}

/// Verifies the damaged shard. Only the right answer will do: this block, this one block, quarantined.
fn detect(manager: &VramManager, shard: &SealedShard, target: &Target) -> Result<(u64, Duration), Failure> {
    let started = Instant::now();
    let answer = manager.verify_sealed(shard);
    let took = started.elapsed();
    let Err(Error::SealVerificationFailed { cause, .. }) = answer else {
        return Err(Failure::integrity("verification", "the flipped bit was not found; report this defect"));
    };
    let VerifyFailure::Damaged { damaged_blocks, first_block, .. } = cause else {
        return Err(Failure::integrity(
            "verification",
            format!("the flipped bit was taken for something else: {cause}"),
        ));
    };
    require(damaged_blocks == 1 && first_block == target.byte / BLOCK_BYTES, "the damaged block is named exactly")?;
    let lent = shard.with_bytes(0..1, |_| ());
    require(matches!(lent, Err(Error::Quarantined { .. })), "a damaged shard lends nothing out")?;
    require(shard.state() == ShardState::Quarantined, "a damaged shard is quarantined")?;
    Ok((first_block, took))
}

/// Repairs from the file. The report must name just the bit that was flipped.
fn repair(
    manager: &VramManager,
    shard: &SealedShard,
    file: &ModelFile,
    target: &Target,
) -> Result<BlockDamage, Failure> {
    let mut report = manager.repair(shard, file.source())?;
    let damage = report.repaired.pop();
    let damage = damage.filter(|_| report.repaired.is_empty());
    let damage = damage.ok_or_else(|| Failure::integrity("repair", "the repair did not name exactly one block"))?;
    let exact = damage.block == target.byte / BLOCK_BYTES
        && damage.first_byte == target.byte
        && damage.first_bit == target.bit
        && (damage.differing_bytes, damage.differing_bits) == (1, 1)
        && damage.tensor.as_deref() == Some(&*target.tensor);
    require(exact, "the repair names the flipped bit exactly")?;
    Ok(damage)
}

/// Closes the log, verifies it offline, and looks for the story in it.
fn check_log(dir: &Path, trail: Trail, before: u64, out: &Out) -> Result<AuditReport, Failure> {
    trail.close(out)?;
    let report = reader::verify(dir)?;
    require(report.is_intact() && report.clean_close && report.torn_tail.is_none(), "the audit log is intact")?;
    let mut left = STORY.iter().peekable();
    for event in events_after(dir, before)? {
        let event = event?;
        left.next_if(|expected| **expected == event);
    }
    match left.peek() {
        None => Ok(AuditReport { records: report.records, segments: report.segments }),
        Some(missing) => {
            Err(Failure::integrity("audit", format!("the audit log lacks the record {missing}; report this defect")))
        }
    }
}

fn require(holds: bool, what: &str) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(Failure::integrity("demo", format!("it does not hold that {what}; report this defect")))
    }
}

fn good(out: &Out, text: &str) -> String {
    format!("{} {text}", out.styled(Style::Green, "ok"))
}

fn bad(out: &Out, text: &str) -> String {
    format!("{} {text}", out.styled(Style::Red, "DAMAGED"))
}

/// The number of bits in so many bytes, as people read it.
fn with_commas(bytes: u64) -> String {
    let digits = bytes.saturating_mul(8).to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len().saturating_sub(index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_with_commas() {
        assert_eq!(with_commas(1), "8");
        assert_eq!(with_commas(125), "1,000");
        assert_eq!(with_commas(266_338_304), "2,130,706,432");
    }
}
