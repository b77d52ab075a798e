//! `vram seal`: load, seal, verify, report, release.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;
use vram_residency::device::{Protection, Residency, WriteTest};
use vram_residency::digest::Digest;
use vram_residency::{SealedShard, ShardId, ShardState, VramManager};

use crate::approve::{self, ApprovalView};
use crate::cli::{Global, Seal};
use crate::devices::{self, About};
use crate::exit::Failure;
use crate::jobs::{self, Job, Rules, Target, count, progress_bar};
use crate::output::{Out, Style, gb_per_s, hex, printable, rfc3339, size, time};
use crate::session::{self, AuditSummary, Trail};
use crate::state;

#[derive(Serialize)]
struct Report {
    /// In the order in which they were named.
    devices: Vec<About>,
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
    /// The device that held it, such as `cuda:1`: several may have been named.
    device: String,
    device_uuid: String,
    residency: Residency,
    protection: Protection,
    /// What a store into sealed memory of that device came to, where it is a GPU.
    #[serde(flatten)]
    write_test: Option<WriteTest>,
    verified: bool,
    state: ShardState,
    expected: Option<String>,
    /// By which manifest, where one was given.
    approval: Option<ApprovalView>,
    seal_seconds: f64,
    seal_gb_per_s: f64,
    verify_seconds: f64,
    verify_gb_per_s: f64,
    /// The seal record in hex.
    seal: String,
}

/// Seals what the arguments name.
pub(super) fn run(seal: &Seal, global: &Global, out: &Out) -> Result<(), Failure> {
    let mut chosen = devices::choose(&seal.device, !seal.no_write_test)?;
    let planned = jobs::plan(&seal.files, seal.format, seal.model_ref.as_deref(), seal.shard_id, &[]);
    let (mut jobs, unreadable) = approve::readable(planned, &seal.files, &seal.approval)?;
    for (flag, given) in [("--expect", seal.expect.is_some()), ("--shard-id", seal.shard_id.is_some())] {
        let files = jobs.len();
        if given && files != 1 && unreadable.is_none() {
            let message = format!("{flag} is about one file and {files} were named; seal them one by one");
            return Err(Failure::usage(message));
        }
    }
    let opened = chosen.open(&seal.host, out)?;
    let places = jobs::places(&jobs, &Target::all(&opened))?;
    let secret = state::secret(global)?;
    let rules = Rules {
        locked: seal.require_locked,
        read_only: seal.require_read_only,
        vram: seal.require_vram,
        audit: global.audit_required,
    };
    let trail = Trail::open(global, out)?;
    let manager = |device| session::manager(session::worker_id(global), &secret, device, &trail, rules.into());
    let managers = opened.into_iter().map(manager).collect::<Result<Vec<_>, _>>()?;
    drop(secret);
    // What is about no device in particular is the first one's.
    let [manager, ..] = managers.as_slice() else { return Err(Failure::usage("no device was named")) };
    if let Some(note) = chosen.note {
        out.line(out.styled(Style::Dim, note));
    }

    let approved = approve::refuse_unreadable(manager, unreadable);
    let approved = approved.and_then(|()| approve(manager, seal, &trail, &mut jobs, out));
    let (devices, worker_id) = (managers.iter().map(About::of).collect(), manager.worker_id().to_string());
    let progress = progress_bar(&jobs, out);
    let sealed = approved.and_then(|()| seal_all(&managers, &places, &jobs, seal, &progress, out));
    progress.finish_and_clear();
    // Whatever happened, the shards are released and the record of everything is on disk before anything is said.
    drop(managers);
    let audit = trail.close(out);
    let (shards, audit) = (sealed?, audit?);
    let total: u64 = shards.iter().map(|shard| shard.bytes).fold(0, u64::saturating_add);
    let recorded = match audit.health {
        "good" => {
            let signed = if audit.signed.as_ref().is_some_and(|signed| signed.complete) { " and signed" } else { "" };
            format!("recorded{signed} in {}", printable(&audit.dir.to_string_lossy()))
        }
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
    out.object(&Report { devices, worker_id, shards, audit });
    Ok(())
}

/// Holds what was given against the manifest, if there is one, before the first byte becomes resident.
fn approve(manager: &VramManager, seal: &Seal, trail: &Trail, jobs: &mut [Job], out: &Out) -> Result<(), Failure> {
    if let Some(approver) = seal.approval.open(manager, &trail.dir)? {
        let unused = approver.approve(&seal.files, jobs, manager)?;
        if let Some(told) = approve::told(&unused) {
            out.line(out.styled(Style::Dim, told));
        }
    }
    Ok(())
}

fn seal_all(
    managers: &[VramManager],
    places: &[usize],
    jobs: &[Job],
    seal: &Seal,
    progress: &ProgressBar,
    out: &Out,
) -> Result<Vec<ShardReport>, Failure> {
    // Kept until all are sealed: a model is resident as a whole or not at all.
    let mut resident = Vec::with_capacity(jobs.len());
    let mut reports = Vec::with_capacity(jobs.len());
    for (job, place) in jobs.iter().zip(places) {
        let Some(manager) = managers.get(*place) else { continue };
        let started = Instant::now();
        let advance = |bytes: u64| progress.inc(bytes);
        let mut request = job.request().reporting(&advance);
        if let Some(expect) = seal.expect {
            request = request.expecting(expect);
        }
        let hashed = manager.sha256_bytes();
        let shard = manager.seal_file(&job.file, &request).map_err(|error| job.retell(error))?;
        let sealing = started.elapsed();
        let hashed = manager.sha256_bytes().saturating_sub(hashed);
        let verified = manager.verify_sealed(&shard)?;
        let report = describe(manager, job, &shard, seal, hashed, sealing, verified.duration);
        progress.suspend(|| show(&report, sealing, verified.duration, out));
        reports.push(report);
        resident.push(shard);
    }
    Ok(reports)
}

fn describe(
    manager: &VramManager,
    job: &Job,
    shard: &SealedShard,
    seal: &Seal,
    sha256_bytes: u64,
    sealing: Duration,
    verifying: Duration,
) -> ShardReport {
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
        device: manager.device_name(),
        device_uuid: shard.device().uuid.to_string(),
        residency: shard.residency(),
        protection: shard.protection(),
        write_test: manager.cuda_facts().map(|facts| facts.write_test.clone()),
        // Only what passed gets here.
        verified: true,
        state: shard.state(),
        expected: seal.expect.map(|expected| expected.to_string()),
        approval: job.approved.as_ref().map(|approved| approved.view(sha256_bytes)),
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
    if let Some(approval) = &report.approval {
        out.line(format_args!("  approved    {} by the {}{}", approval.approved, approval.by(), approval.how()));
    }
    // Main memory's residency says so by itself.
    let device = if report.device.starts_with("cuda:") { format!("{}, ", report.device) } else { String::new() };
    out.line(format_args!("  memory      {device}{}, {}", report.residency, report.protection));
    out.line(format_args!(
        "  sealed      {} in {} ({:.2} GB/s)",
        report.sealed_at,
        time(sealing),
        report.seal_gb_per_s
    ));
    out.line(format_args!("  verified    in {} ({:.2} GB/s)", time(verifying), report.verify_gb_per_s));
}
