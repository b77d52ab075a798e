//! `vram seal`: load, seal, verify, report, release.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::IsTerminal;
use vram_residency::device::{Device, DeviceInfo, HugePages, Protection, Residency};
use vram_residency::digest::Digest;
use vram_residency::model::{self, ModelFile};
use vram_residency::policy::RequiredResidency;
use vram_residency::{MAX_SHARD_ID, Policy, SealRequest, SealedShard, ShardId, ShardState, VramManager};

use crate::cli::{DeviceChoice, Global, Seal};
use crate::exit::Failure;
use crate::output::{Out, Style, gb_per_s, hex, printable, rfc3339, size, time};
use crate::session::{self, AuditSummary, Trail};
use crate::state;

/// A file that is to be sealed.
struct Job {
    file: ModelFile,
    shard_id: ShardId,
    model_ref: String,
    shard_index: u32,
    shard_count: u32,
}

#[derive(Serialize)]
struct Report {
    device: DeviceInfo,
    worker_id: String,
    shards: Vec<ShardReport>,
    audit: AuditSummary,
}

#[derive(Serialize)]
struct ShardReport {
    shard_id: ShardId,
    path: String,
    model_ref: String,
    shard_index: u32,
    shard_count: u32,
    format: &'static str,
    bytes: u64,
    digest: Digest,
    tensors: usize,
    sealed_at: String,
    residency: Residency,
    protection: Protection,
    verified: bool,
    state: ShardState,
    expected: Option<String>,
    seal_seconds: f64,
    seal_gb_per_s: f64,
    verify_seconds: f64,
    verify_gb_per_s: f64,
    /// The seal record in hex.
    seal: String,
}

/// Seals what the arguments name.
pub(super) fn run(seal: &Seal, global: &Global, out: &Out) -> Result<(), Failure> {
    let note = choose_device(seal.device)?;
    let jobs = plan(seal)?;
    let device = session::host_device(&seal.host, HugePages::Ask)?;
    check_room(&jobs, &device)?;
    let secret = state::secret(global)?;
    let trail = Trail::open(global, out)?;
    let manager = session::manager(session::worker_id(global), &secret, device, &trail, policy(seal, global))?;
    drop(secret);
    if let Some(note) = note {
        out.line(out.styled(Style::Dim, note));
    }

    let (device, worker_id) = (manager.device(), manager.worker_id().to_string());
    let progress = Progress::new(&jobs, out);
    let sealed = seal_all(&manager, &jobs, seal, &progress, out);
    progress.bar.finish_and_clear();
    // Whatever happened, the shards are released and the record of everything is on disk before anything is said.
    drop(manager);
    let audit = trail.close(out);
    let (shards, audit) = (sealed?, audit?);
    let total: u64 = shards.iter().map(|shard| shard.bytes).fold(0, u64::saturating_add);
    let recorded = match audit.health {
        "good" => format!("recorded in {}", printable(&audit.dir.to_string_lossy())),
        "damaged" => {
            let behind = format_args!("recorded in {} behind damaged records", audit.dir.display());
            out.styled(Style::Yellow, behind)
        }
        _ => out.styled(Style::Yellow, "not recorded completely"),
    };
    out.line(format_args!(
        "{} {} in {} sealed and verified as {}, {recorded}; released at the end of this command",
        out.styled(Style::Green, "ok"),
        size(total),
        count(shards.len(), "shard"),
        printable(&worker_id),
    ));
    out.object(&Report { device, worker_id, shards, audit });
    Ok(())
}

/// The host is what there is. Somebody who asked for a GPU is not given anything else.
fn choose_device(choice: DeviceChoice) -> Result<Option<&'static str>, Failure> {
    match choice {
        DeviceChoice::Host => Ok(None),
        DeviceChoice::Auto => Ok(Some("device: host (main memory; this build has no CUDA device)")),
        DeviceChoice::Cuda(number) => Err(Failure::new(
            "device",
            format!("cuda:{number} cannot be used: this build has no CUDA device yet; use --device host or auto"),
        )),
    }
}

fn policy(seal: &Seal, global: &Global) -> Policy {
    let mut policy = Policy::default();
    if seal.require_locked {
        policy.residency = RequiredResidency::Locked;
    }
    if seal.require_vram {
        policy.residency = RequiredResidency::Vram;
    }
    policy.require_read_only = seal.require_read_only;
    policy.require_audit = global.audit_required;
    policy
}

/// Finds the files and reads every header, before the first byte becomes resident.
fn plan(seal: &Seal) -> Result<Vec<Job>, Failure> {
    let mut models = Vec::with_capacity(seal.files.len());
    for argument in &seal.files {
        models.push((argument, model::discover(argument)?));
    }
    let files: usize = models.iter().map(|(_, files)| files.len()).sum();
    for (flag, given) in [("--expect", seal.expect.is_some()), ("--shard-id", seal.shard_id.is_some())] {
        if given && files != 1 {
            return Err(Failure::usage(format!(
                "{flag} is about one file and {files} were named; seal them one by one"
            )));
        }
    }
    let mut jobs: Vec<Job> = Vec::with_capacity(files);
    for (argument, files) in models {
        let shard_count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        for (shard_index, path) in (0..).zip(files) {
            let file = ModelFile::open(&path, seal.format)?;
            let shard_id = seal.shard_id.unwrap_or_else(|| name_for(&path, &jobs));
            let model_ref = seal.model_ref.clone().unwrap_or_else(|| name_of(argument));
            jobs.push(Job { file, shard_id, model_ref, shard_index, shard_count });
        }
    }
    Ok(jobs)
}

/// A shard id made from the file's name that no other job has.
fn name_for(path: &Path, taken: &[Job]) -> ShardId {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = ShardId::from_name(&name);
    let free = |id: &ShardId| taken.iter().all(|job| job.shard_id != *id);
    let numbered = (2_u64..).map(|number| {
        let suffix = format!("-{number}");
        let room = MAX_SHARD_ID.saturating_sub(suffix.len());
        let start: String = plain.as_str().chars().take(room).collect();
        ShardId::from_name(&(start + &suffix))
    });
    std::iter::once(plain).chain(numbered).find(free).unwrap_or(plain)
}

/// All of it must fit, or none of it is begun.
fn check_room(jobs: &[Job], device: &dyn Device) -> Result<(), Failure> {
    let needed = jobs.iter().map(|job| job.file.len()).fold(0, u64::saturating_add);
    let available = device.capacity().available_bytes();
    if needed <= available {
        return Ok(());
    }
    let message = format!(
        "{} need {needed} bytes and the host has {available} free; seal fewer files at a time, free some memory, \
         or raise --capacity",
        count(jobs.len(), "file")
    );
    // One file that does not fit is refused by the device itself, which records that.
    if jobs.len() > 1 { Err(Failure::new("memory", message)) } else { Ok(()) }
}

fn seal_all(
    manager: &VramManager,
    jobs: &[Job],
    seal: &Seal,
    progress: &Progress,
    out: &Out,
) -> Result<Vec<ShardReport>, Failure> {
    // Kept until all are sealed: a model is resident as a whole or not at all.
    let mut resident = Vec::with_capacity(jobs.len());
    let mut reports = Vec::with_capacity(jobs.len());
    for job in jobs {
        let started = Instant::now();
        let advance = |bytes: u64| progress.bar.inc(bytes);
        let mut request = SealRequest::new(job.shard_id, &job.model_ref).part(job.shard_index, job.shard_count);
        request = request.reporting(&advance);
        if let Some(expect) = seal.expect {
            request = request.expecting(expect);
        }
        let shard = manager.seal_file(&job.file, &request)?;
        let sealing = started.elapsed();
        let verified = manager.verify_sealed(&shard)?;
        let report = describe(job, &shard, seal, sealing, verified.duration);
        progress.bar.suspend(|| show(&report, sealing, verified.duration, out));
        reports.push(report);
        resident.push(shard);
    }
    Ok(reports)
}

fn describe(job: &Job, shard: &SealedShard, seal: &Seal, sealing: Duration, verifying: Duration) -> ShardReport {
    ShardReport {
        shard_id: *shard.shard_id(),
        path: job.file.path().to_string_lossy().into_owned(),
        model_ref: shard.model_ref().to_owned(),
        shard_index: shard.shard_index(),
        shard_count: shard.shard_count(),
        format: job.file.format().name(),
        bytes: shard.bytes(),
        digest: shard.digest(),
        tensors: shard.table().len(),
        sealed_at: rfc3339(shard.sealed_at_ns()),
        residency: shard.residency(),
        protection: shard.protection(),
        // Only what passed gets here.
        verified: true,
        state: shard.state(),
        expected: seal.expect.map(|expected| expected.to_string()),
        seal_seconds: sealing.as_secs_f64(),
        seal_gb_per_s: gb_per_s(shard.bytes(), sealing),
        verify_seconds: verifying.as_secs_f64(),
        verify_gb_per_s: gb_per_s(shard.bytes(), verifying),
        seal: hex(&shard.seal_record()),
    }
}

fn show(report: &ShardReport, sealing: Duration, verifying: Duration, out: &Out) {
    out.line(out.styled(Style::Bold, report.shard_id));
    out.line(format_args!("  file        {}", printable(&report.path)));
    out.line(format_args!(
        "  contents    {}, {} bytes ({}), {}",
        report.format,
        report.bytes,
        size(report.bytes),
        count(report.tensors, "tensor")
    ));
    out.line(format_args!("  digest      {}", report.digest));
    if let Some(expected) = &report.expected {
        out.line(format_args!("  expected    {expected}: as expected"));
    }
    out.line(format_args!("  memory      {}, {}", report.residency, report.protection));
    out.line(format_args!(
        "  sealed      {} in {} ({:.2} GB/s)",
        report.sealed_at,
        time(sealing),
        report.seal_gb_per_s
    ));
    out.line(format_args!("  verified    in {} ({:.2} GB/s)", time(verifying), report.verify_gb_per_s));
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Bytes that have become resident, on stderr where that is a terminal.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new(jobs: &[Job], out: &Out) -> Self {
        let bytes = jobs.iter().map(|job| job.file.len()).fold(0, u64::saturating_add);
        let shown = std::io::stderr().is_terminal() && !out.json;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        let style = ProgressStyle::with_template("sealing {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        Self { bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())) }
    }
}

/// A path as a model's name: what is no text, or would be no plain one, becomes a mark.
fn name_of(path: &Path) -> String {
    path.to_string_lossy().replace(char::is_control, "\u{fffd}")
}
