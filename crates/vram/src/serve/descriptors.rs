//! File descriptors: as many as all who may come need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For the log, the models' own files, the timers and what else is open at a time.
const OTHERS: u64 = 256;

/// How many are needed: a connection on the port with a file that is sent, one on the control socket, on the attach socket a
/// connection and the descriptor that is handed out, and the memory of each shard.
pub(super) fn needed(connections: usize, clients: usize, shards: usize) -> u64 {
    let both_doors = connections.saturating_mul(3);
    let all = both_doors.saturating_add(clients.saturating_mul(2)).saturating_add(shards);
    u64::try_from(all).unwrap_or(u64::MAX).saturating_add(OTHERS)
}

/// Raises what this process may open to what is needed, as far as it can be raised. Says what is missing then.
pub(super) fn allow(needed: u64) -> Option<String> {
    let Rlimit { current: Some(soft), maximum } = getrlimit(Resource::Nofile) else { return None };
    if soft >= needed {
        return None;
    }
    let most = maximum.map_or(needed, |hard| hard.min(needed));
    let raised = most <= soft || setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).is_ok();
    let has = if raised { most.max(soft) } else { soft };
    (has < needed).then(|| {
        format!(
            "all connections that are allowed take {needed} file descriptors and this process gets {has}: where they run \
             out nobody else can connect; raise the limit (LimitNOFILE= of the unit, or ulimit -n), or lower \
             --max-connections or [attach] max_clients"
        )
    })
}
