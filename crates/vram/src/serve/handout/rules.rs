//! Who may have which shards: the section `[attach]`, understood.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vram_residency::device::DeviceKind;
use vram_residency::digest::Digest;
use vram_residency::handout::{Answer, ErrorCode, socket_beside};
use vram_residency::{Policy, SealedShard, ShardId};

use super::room::Room;
use crate::cli::{AttachOptions, GpuHandout};
use crate::exit::Failure;

/// Connections at one time, unless it is told otherwise.
const CLIENTS: u16 = 512;

/// What is allowed.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) enabled: bool,
    pub(crate) socket: PathBuf,
    /// The daemon's own user and root, and who else is named.
    uids: BTreeSet<u32>,
    /// None: all.
    digests: Option<Vec<Digest>>,
    /// Whether a GPU's memory is handed out.
    pub(crate) gpu: GpuHandout,
    /// Whose connections there may be, and how many.
    pub(super) room: Room,
    own: u32,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    Name(String),
    Digest(Digest),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// The shard, where there is such a one.
    pub(crate) shard_id: Option<Box<ShardId>>,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), shard_id: None }
    }

    pub(crate) fn of(self, shard_id: ShardId) -> Self {
        Self { shard_id: Some(Box::new(shard_id)), ..self }
    }

    pub(crate) fn answer(&self) -> Answer {
        Answer::Error { code: self.code, message: self.message.clone() }
    }
}

impl Rules {
    pub(crate) fn of(options: &AttachOptions, control: &Path) -> Result<Self, Failure> {
        let own = rustix::process::geteuid().as_raw();
        let socket = options.socket.clone().unwrap_or_else(|| socket_beside(control));
        if socket == control {
            let message = "[attach] socket and the control socket are the same; give each a path of its own";
            return Err(Failure::usage(message));
        }
        let max_clients = options.max_clients.unwrap_or(CLIENTS);
        if max_clients < Room::LEAST {
            let least = Room::LEAST;
            let message = format!(
                "[attach] max_clients is less than {least}; two places are kept for the daemon's own user and root; raise it"
            );
            return Err(Failure::usage(message));
        }
        let uids: BTreeSet<u32> = options.uids.iter().copied().chain([own, 0]).collect();
        Ok(Self {
            enabled: options.enabled.unwrap_or(true),
            socket,
            room: Room::new(max_clients, own, uids.clone()),
            uids,
            digests: options.digests.clone(),
            gpu: options.gpu.unwrap_or_default(),
            own,
        })
    }

    /// How many may be connected at one time.
    pub(crate) fn most_clients(&self) -> usize {
        if self.enabled { self.room.most() } else { 0 }
    }

    /// Whether others than the daemon's own user and root may have shards.
    pub(crate) fn is_shared(&self) -> bool {
        self.uids.iter().any(|uid| *uid != self.own && *uid != 0)
    }

    pub(crate) fn check_user(&self, uid: u32) -> Result<(), Refusal> {
        if self.uids.contains(&uid) {
            return Ok(());
        }
        let message = "your user may not have shards handed out; the daemon's operator can name it in [attach] uids";
        Err(Refusal::new(ErrorCode::ForbiddenUser, message))
    }

    pub(crate) fn check_digest(&self, digest: Digest) -> Result<(), Refusal> {
        if self.allows(digest) {
            return Ok(());
        }
        let message = "this shard is not handed out; the daemon's operator can name its digest in [attach] digests";
        Err(Refusal::new(ErrorCode::ForbiddenDigest, message))
    }

    /// Whether a shard may leave the memory that it is in, by the way that the client asked for.
    pub(super) fn check_memory(&self, shard: &SealedShard, asked: DeviceKind) -> Result<(), Refusal> {
        let (shard_id, held) = (shard.shard_id(), shard.device().kind);
        let message = match (held, asked) {
            (DeviceKind::Cuda, _) if self.gpu == GpuHandout::Refuse => format!(
                "'{shard_id}' is in a GPU's memory, and who has the descriptor of that can write to it; the daemon's operator \
                 can trust its clients not to, with [attach] gpu = \"trust-clients\", or keep the shard in main memory \
                 (--device host)"
            ),
            (DeviceKind::Cuda, DeviceKind::Host) => format!(
                "'{shard_id}' is in a GPU's memory; ask for it with attach-cuda, as attach_cuda of the Rust client and \
                 docs/attach_cuda.py do"
            ),
            (DeviceKind::Host, DeviceKind::Cuda) => format!("'{shard_id}' is in main memory; ask for it with attach"),
            _ => return Ok(()),
        };
        Err(Refusal::new(ErrorCode::Device, message))
    }

    /// What an operator whose weights are in a GPU's memory should know about handing them out, in one line.
    pub(crate) fn gpu_note(&self, device: DeviceKind, policy: &Policy) -> Option<&'static str> {
        match (device, self.gpu) {
            (DeviceKind::Cuda, GpuHandout::Refuse) => Some(
                "weights in a GPU's memory are not handed out; --attach-gpu trust-clients changes that, and docs/cuda.md \
                 says what it means",
            ),
            (DeviceKind::Cuda, GpuHandout::TrustClients) if policy.require_read_only => {
                Some("weights in a GPU's memory are not handed out, because --require-read-only forbids it")
            }
            (DeviceKind::Cuda, GpuHandout::TrustClients) => Some(
                "clients can write to the weights that they are handed: their protection becomes advisory, and the check \
                 finds what is changed",
            ),
            _ => None,
        }
    }

    /// Whether nothing is on no list.
    pub(crate) fn allows_all(&self) -> bool {
        self.digests.is_none()
    }

    pub(crate) fn allows(&self, digest: Digest) -> bool {
        self.digests.as_ref().is_none_or(|digests| digests.contains(&digest))
    }
}

/// What hides the socket from users who may have shards, if anything does.
pub(super) fn hidden(rules: &Rules) -> Option<String> {
    if !rules.is_shared() {
        return None;
    }
    let dir = rules.socket.ancestors().skip(1).find(|dir| {
        let facts = std::fs::metadata(if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
        facts.is_ok_and(|facts| facts.mode() & 0o001 == 0)
    })?;
    Some(format!(
        "users in [attach] uids may not reach the socket, because not everybody may pass through {}; open that \
         directory (chmod o+x) or choose another [attach] socket",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::of(&toml::from_str(text).unwrap(), Path::new("/run/vram/vram.sock")).unwrap()
    }

    #[test]
    fn without_a_list_only_the_own_user_and_root_have_shards_and_they_have_all() {
        let rules = rules("");
        let own = rustix::process::geteuid().as_raw();
        assert!(rules.check_user(own).is_ok() && rules.check_user(0).is_ok());
        for other in [own.wrapping_add(1), 65_534, u32::MAX] {
            let refused = rules.check_user(other).unwrap_err();
            assert_eq!(refused.code, ErrorCode::ForbiddenUser, "{other}");
        }
        assert!(rules.check_digest(Digest::of(b"anything")).is_ok());
        assert!(!rules.is_shared() && rules.enabled);
        assert_eq!(rules.socket, Path::new("/run/vram/vram-attach.sock"));
    }

    #[test]
    fn who_and_what_is_on_the_lists_and_nothing_else() {
        let good = Digest::of(b"approved");
        let rules = rules(&format!("uids = [4001, 4002]\ndigests = [\"{good}\"]"));
        assert!(rules.is_shared());
        assert!([4001, 4002, 0].into_iter().all(|uid| rules.check_user(uid).is_ok()));
        assert!([4000, 4003].into_iter().all(|uid| rules.check_user(uid).is_err()));
        assert!(rules.check_digest(good).is_ok());
        assert_eq!(rules.check_digest(Digest::of(b"other")).unwrap_err().code, ErrorCode::ForbiddenDigest);
        assert!(self::rules("digests = []").check_digest(good).is_err(), "an empty list allows nothing");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["uid = [1]", "uids = [-1]", "digests = [\"sha256:00\"]", "digests = [\"blake3:0\"]"] {
            assert!(toml::from_str::<AttachOptions>(text).is_err(), "{text}");
        }
        let same = toml::from_str("socket = \"/run/a\"").unwrap();
        assert!(Rules::of(&same, Path::new("/run/a")).is_err());
        assert!(Rules::of(&toml::from_str("max_clients = 3").unwrap(), Path::new("/run/a")).is_err());
    }
}
