//! `vram doctor`: what this machine can do, what is missing, and how to fix it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use audit_logging::{Disk, ReadError, publish, reader};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use serde::Serialize;
use vram_residency::device::{
    Device, DeviceError, HostDevice, HugePages, MemoryFacts, Protection, Residency, conformance,
};
use vram_residency::digest::{BlockValue, block_count};

use crate::cli::{Doctor, Global, Host};
use crate::exit::Failure;
use crate::machine::{self, ShmemHugePages};
use crate::output::{Out, Style, printable, size, time};
use crate::{session, state};

mod gpu;

/// Critical records should be on disk within this.
const DEADLINE: Duration = Duration::from_millis(10);

const RAISE_LOCK_LIMIT: &str = "for this shell: sudo prlimit --pid $$ --memlock=unlimited; for good: \
     'USER - memlock unlimited' in /etc/security/limits.conf, LimitMEMLOCK=infinity in a systemd service, \
     --ulimit memlock=-1 for a container";

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Note,
    /// Something essential does not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
    remedy: Option<String>,
    /// Something is not as it was written: that has an exit code of its own.
    #[serde(skip)]
    damaged: bool,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), remedy: None, damaged: false }
    }

    fn note(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Note, detail: detail.into(), remedy: Some(remedy.into()), damaged: false }
    }

    fn problem(name: &'static str, detail: impl Into<String>, remedy: Option<String>) -> Self {
        Self { name, state: State::Problem, detail: detail.into(), remedy, damaged: false }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
}

/// Looks at everything; fails where something essential does.
pub(super) fn run(doctor: &Doctor, global: &Global, out: &Out) -> Result<(), Failure> {
    // Before there are threads, as wherever a GPU may be opened.
    vram_residency::device::disable_kernel_cache();
    let mut checks = vec![memory()];
    host(&doctor.host, &mut checks);
    checks.extend([huge_pages(), reserved_pages(), core_dumps()]);
    log_directory(global, &mut checks);
    let exposed = state::exposed_directories(global).into_iter();
    checks.extend(exposed.map(|exposed| Check::note("directory", exposed.detail, exposed.remedy)));
    checks.push(seal_key(global));
    checks.push(log_key(global));
    checks.push(attest_key());
    gpu::look(!doctor.no_write_test, &mut checks);

    for check in &checks {
        show(check, out);
    }
    let problems: Vec<_> =
        checks.iter().filter(|check| check.state == State::Problem).map(|check| check.name).collect();
    if problems.is_empty() {
        out.line("\nEverything that is needed works.");
        out.object(&Report { ok: true, checks, error: None });
        return Ok(());
    }
    let message =
        format!("not everything that is needed works: {}; the lines above say what to do", problems.join(", "));
    let damaged = checks.iter().any(|check| check.damaged);
    let mut failure = if damaged { Failure::integrity("doctor", message) } else { Failure::new("doctor", message) };
    out.object(&Report { ok: false, checks, error: Some(&failure) });
    failure.in_report = true;
    Err(failure)
}

fn show(check: &Check, out: &Out) {
    let word = match check.state {
        State::Ok => out.styled(Style::Green, "ok     "),
        State::Note => out.styled(Style::Yellow, "note   "),
        State::Problem => out.styled(Style::Red, "problem"),
    };
    let name = out.styled(Style::Bold, format_args!("{:<12}", check.name));
    out.line(format_args!("{word}  {name}  {}", printable(&check.detail)));
    if let Some(remedy) = &check.remedy {
        out.line(format_args!("                       {}", out.styled(Style::Dim, remedy)));
    }
}

fn memory() -> Check {
    match MemoryFacts::measure() {
        Ok(facts) => Check::ok(
            "memory",
            format!(
                "{} in all, {} available, {} for regions",
                size(facts.total_bytes),
                size(facts.available_bytes),
                size(facts.usable_bytes())
            ),
        ),
        Err(error) => Check::problem("memory", error.to_string(), Some("mount /proc".to_owned())),
    }
}

/// The host device: opened, tried out, shown to be read-only.
fn host(host: &Host, checks: &mut Vec<Check>) {
    let device = match session::host_device(host, HugePages::Ask) {
        Ok(device) => device,
        Err(failure) => {
            let remedy = "use Linux 5.1 or newer, and allow memfd_create where calls are filtered (seccomp)".to_owned();
            checks.push(Check::problem("device", failure.message, Some(remedy)));
            return;
        }
    };
    let (info, capacity) = (device.info(), device.capacity());
    let shown =
        format!("{} {}, {} capacity, {} threads", info.kind, info.uuid, size(capacity.total_bytes), device.threads());
    checks.push(Check::ok("device", shown));
    checks.push(match device.protection() {
        Protection::ReadOnly => {
            Check::ok("protection", "read-only: sealed memory refused every way of writing that was tried")
        }
        _ => Check::note(
            "protection",
            "advisory: sealed memory could be written; run with -v to see how",
            "use Linux 5.1 or newer; until then every seal says advisory, and --require-read-only refuses",
        ),
    });
    let started = Instant::now();
    checks.push(match conformance::check(&device) {
        Ok(summary) => Check::ok(
            "conformance",
            format!("{} regions behaved as promised, in {}", summary.regions, time(started.elapsed())),
        ),
        Err(failure) => {
            Check::problem("conformance", failure.to_string(), Some("report this with the kernel's version".to_owned()))
        }
    });
    checks.push(locking(&device));
}

/// Whether regions beyond the limit on locked memory are locked.
fn locking(device: &HostDevice) -> Check {
    let usable = device.capacity().total_bytes;
    let limit = getrlimit(Resource::Memlock).current;
    let limit_text = limit.map_or_else(|| "no limit".to_owned(), |bytes| format!("a limit of {}", size(bytes)));
    // A little more than the limit, as long as that is quickly done.
    let probe = limit.unwrap_or(0).saturating_add(1 << 20);
    if probe > 64 << 20 {
        let detail = format!("{limit_text} on locked memory");
        return if limit.is_none_or(|limit| limit >= usable) {
            Check::ok("locking", detail)
        } else {
            Check::note("locking", format!("{detail}; larger models stay pageable"), RAISE_LOCK_LIMIT)
        };
    }
    match residency_of(device, probe) {
        Ok(Residency::HostLocked) => {
            Check::ok("locking", format!("{limit_text} on locked memory, which does not bind this user"))
        }
        Ok(_) => Check::note(
            "locking",
            format!("{limit_text} on locked memory; larger models stay pageable"),
            RAISE_LOCK_LIMIT,
        ),
        Err(error) => Check::problem("locking", error.to_string(), None),
    }
}

fn residency_of(device: &HostDevice, bytes: u64) -> Result<Residency, DeviceError> {
    let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
    let mut values = vec![BlockValue::UNKNOWN; usize::try_from(block_count(bytes)).unwrap_or(0)];
    let mut staged = device.allocate(bytes, 0)?;
    staged.fill(&zeros.as_slice(), &mut values)?;
    Ok(staged.protect()?.residency())
}

fn huge_pages() -> Check {
    let enable = format!("faster sealing: echo advise | sudo tee {}", ShmemHugePages::SETTING);
    match ShmemHugePages::read() {
        Some(pages) if pages.available => Check::ok("huge pages", format!("for shared memory: {}", pages.setting)),
        Some(pages) => Check::note("huge pages", format!("off for shared memory ({})", pages.setting), enable),
        None => Check::note(
            "huge pages",
            "this kernel has no transparent huge pages for shared memory",
            "nothing is lost but some speed",
        ),
    }
}

fn reserved_pages() -> Check {
    let reserved: Vec<_> = machine::reserved_huge_pages().into_iter().filter(|(_, number)| *number > 0).collect();
    let shown: Vec<_> =
        reserved.iter().map(|(kib, number)| format!("{number} of {}", size(kib.saturating_mul(1024)))).collect();
    match shown.is_empty() {
        true => Check::ok("hugetlb", "no pages reserved; none needed"),
        false => Check::note(
            "hugetlb",
            format!("reserved and not used by vram: {}", shown.join(", ")),
            "they are missing from the memory for regions: echo 0 | sudo tee /proc/sys/vm/nr_hugepages, if nobody else needs them",
        ),
    }
}

fn core_dumps() -> Check {
    let off = getrlimit(Resource::Core).current == Some(0);
    let hidden = matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    match off && hidden {
        true => Check::ok("core dumps", "off for this program: keys and weights do not reach the disk"),
        false => Check::note("core dumps", "could not be switched off", "set ulimit -c 0 before starting vram"),
    }
}

fn log_directory(global: &Global, checks: &mut Vec<Check>) {
    let name = "audit log";
    let dir = match state::audit_dir(global) {
        Ok(dir) => dir,
        Err(failure) => return checks.push(Check::problem(name, failure.message, None)),
    };
    let near = machine::nearest_existing(&dir);
    let shown = dir.display();
    if let Err(error) = machine::may_write(&near) {
        let detail = format!("{shown} cannot be written: {} says {error}", near.display());
        let remedy = format!(
            "give this user the right to write in {}, or name another directory with --audit-dir",
            near.display()
        );
        return checks.push(Check::problem(name, detail, Some(remedy)));
    }
    let free = machine::free_bytes(&near).unwrap_or(0);
    checks.push(match machine::is_in_memory(&near) {
        Ok(true) => Check::note(
            name,
            format!("{shown} lies in memory (tmpfs): records are gone after a power cut, whatever the log says"),
            "name a directory on a disk with --audit-dir",
        ),
        Ok(false) if free < 64 << 20 => {
            Check::note(name, format!("{shown}: only {} free", size(free)), "free some space: 64 MiB last for a while")
        }
        Ok(false) => Check::ok(name, format!("{shown} can be written, {} free", size(free))),
        Err(error) => Check::problem(name, format!("{shown}: {error}"), None),
    });
    checks.extend(damage(&dir));
    checks.push(sync_latency(&near));
}

/// Whether the records that are there are as they were written; nothing where there are none yet.
fn damage(dir: &Path) -> Option<Check> {
    let name = "records";
    let report = match reader::verify(dir) {
        Ok(report) => report,
        Err(ReadError::NoLog { .. }) => return None,
        Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Check::problem(name, error.to_string(), None)),
    };
    let Some(first) = report.violations.first() else {
        return Some(Check::ok(name, format!("{} in the audit log, none damaged", report.records)));
    };
    let others = match report.violations_total {
        0 | 1 => String::new(),
        total => format!(" (the first of {total} places)"),
    };
    let remedy = "vram audit verify lists every place; name another directory with --audit-dir".to_owned();
    let check = Check::problem(name, format!("the audit log is damaged{others}: {first}"), Some(remedy));
    Some(Check { damaged: true, ..check })
}

fn sync_latency(dir: &Path) -> Check {
    let name = "fsync";
    match machine::sync_latencies(dir, 50) {
        Ok(sorted) => {
            let (median, most) = (machine::quantile(&sorted, 0.5), machine::quantile(&sorted, 1.0));
            let detail = format!("4 KiB are on disk after {}, at worst {}", time(median), time(most));
            if median < DEADLINE {
                Check::ok(name, detail)
            } else {
                let remedy = "critical records will be late (10 ms): put the log on a faster disk with --audit-dir";
                Check::note(name, detail, remedy)
            }
        }
        Err(error) => Check::problem(name, format!("{}: {error}", dir.display()), Some("check the disk".to_owned())),
    }
}

fn seal_key(global: &Global) -> Check {
    let name = "seal key";
    let (path, ours) = match state::key_path(global) {
        Ok(place) => place,
        Err(failure) => return Check::problem(name, failure.message, None),
    };
    let shown = path.display();
    match state::open_key(&path) {
        Ok(file) => match state::read_secret(&path, &file) {
            Ok(secret) => Check::ok(name, format!("{shown}: {} bytes, only its owner can read it", secret.len())),
            Err(failure) => Check::problem(name, failure.message, None),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && ours => {
            let near = machine::nearest_existing(&path);
            match machine::may_write(&near) {
                Ok(()) => Check::ok(name, format!("{shown} is not there yet; the first seal makes it")),
                Err(error) => {
                    let remedy = format!(
                        "give this user the right to write in {}, or name a file with --key-file",
                        near.display()
                    );
                    Check::problem(name, format!("{shown} cannot be made: {error}"), Some(remedy))
                }
            }
        }
        Err(error) => {
            let remedy = format!("make it with: {}", state::MAKE_KEY);
            Check::problem(name, format!("{shown} cannot be opened: {error}"), Some(remedy))
        }
    }
}

fn attest_key() -> Check {
    let name = "attest key";
    let path = match state::attest_key_path(None) {
        Ok((path, _)) => path,
        Err(failure) => return Check::problem(name, failure.message, None),
    };
    if state::is_absent(&path) {
        return Check::ok(name, "there is none, so nothing is attested; vram attest --keygen makes it");
    }
    match state::attest_key(&path) {
        Ok(key) => Check::ok(name, format!("{} signs attestations as {}", path.display(), key.public())),
        Err(failure) => Check::problem(name, failure.message, None),
    }
}

fn log_key(global: &Global) -> Check {
    let name = "log key";
    let path = match state::audit_key_path(global) {
        Ok(path) => path,
        Err(failure) => return Check::problem(name, failure.message, None),
    };
    if global.audit_key.is_none() && state::is_absent(&path) {
        let detail = "the audit log is not signed: it shows damage, and not what a forger does";
        return Check::note(name, detail, "make a key, which signs it from the next run on: vram audit keygen");
    }
    match publish::read_signer(&Disk, &path) {
        Ok(key) => Check::ok(name, format!("{} signs the audit log as {}", path.display(), key.verifier().name())),
        Err(error) => Check::problem(name, error.to_string(), None),
    }
}
