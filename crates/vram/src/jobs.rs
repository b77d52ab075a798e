//! Which files are to be sealed, under which names, by which rules.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vram_residency::device::Device;
use vram_residency::model::{self, Format, ModelFile, ShardIndex};
use vram_residency::policy::RequiredResidency;
use vram_residency::{Error, MAX_SHARD_ID, Policy, SealRequest, ShardId};

use crate::approve::Approved;
use crate::devices;
use crate::exit::Failure;
use crate::output::Out;

/// A file that is to be sealed.
pub(crate) struct Job {
    pub(crate) file: ModelFile,
    pub(crate) shard_id: ShardId,
    pub(crate) model_ref: String,
    pub(crate) shard_index: u32,
    pub(crate) shard_count: u32,
    /// The index that named it, where one did.
    pub(crate) index: Option<Arc<ShardIndex>>,
    /// What a manifest says of it, where one was given.
    pub(crate) approved: Option<Approved>,
}

impl Job {
    pub(crate) fn request(&self) -> SealRequest<'_> {
        let request = SealRequest::new(self.shard_id, &self.model_ref).part(self.shard_index, self.shard_count);
        match &self.approved {
            Some(approved) => request.approved(approved.approval()),
            None => request,
        }
    }

    /// Why it could not be sealed, in words that name its file and its manifest, where that is what differs.
    pub(crate) fn retell(&self, error: Error) -> Failure {
        match &self.approved {
            Some(approved) => {
                approved.retell(error, self.file.path(), "nothing of it stays resident, get the file again")
            }
            None => error.into(),
        }
    }
}

/// Finds the files and reads every header, before the first byte becomes resident. `named` is the name of the only shard;
/// `taken` are names that others have.
pub(crate) fn plan(
    arguments: &[PathBuf],
    format: Option<Format>,
    model_ref: Option<&str>,
    named: Option<ShardId>,
    taken: &[ShardId],
) -> Result<Vec<Job>, Failure> {
    let mut models = Vec::with_capacity(arguments.len());
    for argument in arguments {
        models.push((argument, model::find(argument)?));
    }
    let mut jobs: Vec<Job> = Vec::new();
    for (argument, found) in models {
        let index = found.index.map(Arc::new);
        let shard_count = u32::try_from(found.files.len()).unwrap_or(u32::MAX);
        for (shard_index, path) in (0..).zip(found.files) {
            let file = ModelFile::open(&path, format)?;
            let is_taken = |id: &ShardId| taken.contains(id) || jobs.iter().any(|job| job.shard_id == *id);
            let shard_id = named.unwrap_or_else(|| name_for(&path, &is_taken));
            let model_ref = model_ref.map_or_else(|| name_of(argument), str::to_owned);
            let index = index.clone();
            jobs.push(Job { file, shard_id, model_ref, shard_index, shard_count, index, approved: None });
        }
    }
    Ok(jobs)
}

/// A shard id made from the file's name that nobody else has.
fn name_for(path: &Path, is_taken: &dyn Fn(&ShardId) -> bool) -> ShardId {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = ShardId::from_name(&name);
    let numbered = (2_u64..).map(|number| {
        let suffix = format!("-{number}");
        let room = MAX_SHARD_ID.saturating_sub(suffix.len());
        let start: String = plain.as_str().chars().take(room).collect();
        ShardId::from_name(&(start + &suffix))
    });
    std::iter::once(plain).chain(numbered).find(|id| !is_taken(id)).unwrap_or(plain)
}

/// A device that files may go to.
pub(crate) struct Target<'a> {
    pub(crate) device: &'a dyn Device,
    /// Whether anything can be sealed there: not where it is lost or not trusted any more.
    pub(crate) is_usable: bool,
}

impl<'a> Target<'a> {
    /// Devices that were opened just now.
    pub(crate) fn all(devices: &'a [Arc<dyn Device>]) -> Vec<Self> {
        devices.iter().map(|device| Self { device: &**device, is_usable: true }).collect()
    }
}

/// On which of the devices each file becomes resident: the largest first, each to where most is left. All of it must fit,
/// or none of it is begun. A single file that fits nowhere goes to a device that refuses it, and records that.
pub(crate) fn places(jobs: &[Job], targets: &[Target<'_>]) -> Result<Vec<usize>, Failure> {
    let rooms = targets.iter().map(|target| if target.is_usable { target.device.room_bytes() } else { 0 });
    let rooms: Vec<_> = rooms.collect();
    let needs = |job: &Job| {
        let needs = targets.iter().map(|to| to.device.needed_bytes(job.file.len(), job.file.lead_bytes()));
        needs.max().unwrap_or(0)
    };
    let sizes: Vec<_> = jobs.iter().map(needs).collect();
    if let Some(places) = devices::spread(&sizes, &rooms) {
        return Ok(places);
    }
    let usable = |place: &usize| targets.get(*place).is_some_and(|target| target.is_usable);
    // Of equal rooms the first.
    let roomiest = (0..targets.len()).rev().max_by_key(|place| (usable(place), rooms.get(*place))).unwrap_or(0);
    if jobs.len() == 1 || targets.iter().all(|target| !target.is_usable) {
        return Ok(vec![roomiest; jobs.len()]);
    }
    let shown = targets.iter().zip(&rooms).map(|(Target { device, is_usable }, room)| match is_usable {
        true => format!("{} has {room} bytes free", device.name()),
        false => format!("{} is lost or quarantined", device.name()),
    });
    let needed = sizes.iter().copied().fold(0, u64::saturating_add);
    let (files, shown) = (count(jobs.len(), "file"), shown.collect::<Vec<_>>().join(", "));
    let each = if targets.len() > 1 { ", each as a whole on one device" } else { "" };
    let message = format!(
        "{files} need {needed} bytes{each}, and {shown}; seal fewer files at a time, free some memory, raise --capacity, or \
         name more GPUs"
    );
    Err(Failure::new("memory", message))
}

/// What the memory must be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) locked: bool,
    pub(crate) read_only: bool,
    pub(crate) vram: bool,
    pub(crate) audit: bool,
}

impl From<Rules> for Policy {
    fn from(rules: Rules) -> Self {
        let mut policy = Self::default();
        if rules.locked {
            policy.residency = RequiredResidency::Locked;
        }
        if rules.vram {
            policy.residency = RequiredResidency::Vram;
        }
        policy.require_read_only = rules.read_only;
        policy.require_audit = rules.audit;
        policy
    }
}

/// Bytes that have become resident, on stderr where that is a terminal.
pub(crate) fn progress_bar(jobs: &[Job], out: &Out) -> ProgressBar {
    let bytes = jobs.iter().map(|job| job.file.len()).fold(0, u64::saturating_add);
    let shown = std::io::stderr().is_terminal() && !out.json;
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    let style = ProgressStyle::with_template("sealing {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(crate) fn count<N: Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    if number == N::from(1) {
        return format!("1 {what}");
    }
    match what.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{number} {stem}ies"),
        _ if what.ends_with('s') => format!("{number} {what}es"),
        _ => format!("{number} {what}s"),
    }
}

/// A path as a model's name. It stands in seals and records for as long as these are kept, so it names no person: a home
/// directory becomes `~`, or `/home/*` where it is another user's. What is no plain text becomes a mark.
pub(crate) fn name_of(path: &Path) -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && home != Path::new("/"));
    nameless(path, home.as_deref()).to_string_lossy().replace(char::is_control, "\u{fffd}")
}

fn nameless(path: &Path, home: Option<&Path>) -> PathBuf {
    if let Some(rest) = home.and_then(|home| path.strip_prefix(home).ok()) {
        return Path::new("~").join(rest);
    }
    match path.strip_prefix("/home").map(|rest| rest.components().skip(1).collect::<PathBuf>()) {
        Ok(rest) if !rest.as_os_str().is_empty() => Path::new("/home/*").join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_several() {
        let said: Vec<_> = ["block", "entry", "key", "witness"].iter().map(|what| count(2_u64, what)).collect();
        assert_eq!(said, ["2 blocks", "2 entries", "2 keys", "2 witnesses"]);
        assert_eq!((count(1_usize, "block"), count(0_u32, "entry")), ("1 block".to_owned(), "0 entries".to_owned()));
    }

    #[test]
    fn a_models_name_names_no_person() {
        let home = Some(Path::new("/srv/people/ada"));
        for (path, name) in [
            ("/srv/people/ada/m/llama.gguf", "~/m/llama.gguf"),
            ("/home/grace/m/llama.gguf", "/home/*/m/llama.gguf"),
            ("/home/llama.gguf", "/home/llama.gguf"),
            ("/srv/models/llama.gguf", "/srv/models/llama.gguf"),
            ("llama.gguf", "llama.gguf"),
        ] {
            assert_eq!(nameless(Path::new(path), home), Path::new(name));
        }
        assert_eq!(nameless(Path::new("/srv/people/ada/m"), None), Path::new("/srv/people/ada/m"));
    }
}
