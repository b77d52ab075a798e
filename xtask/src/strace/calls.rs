//! Which system calls a run makes on the files of its log, and how strace is told to meet one of them again.

use std::collections::{BTreeMap, BTreeSet};

/// Every call that opens, reads, writes, syncs, names or asks about a file. A question mark: not on every machine.
pub const TRACED: &str = "?open,openat,?mkdir,mkdirat,?rename,renameat,renameat2,?link,linkat,fsync,fdatasync,\
                          sync_file_range,fallocate,ftruncate,close,read,pread64,preadv,write,pwrite64,pwritev,flock,\
                          statx,fstat,?newfstatat,?stat,?lstat,?unlink,unlinkat,?rmdir,getdents64,?access,faccessat";

/// What is done to one call. All of it is what a kernel does, too: a call that fails has done nothing, a write may take
/// nothing or a part, and a process may die between any two calls.
///
/// What strace cannot do: it replaces a call or lets it be, so it cannot have a part of a write performed. A result made up
/// for a call that was not performed (`retval`) is a lie that no kernel tells, but for the result 0: nothing was taken.
/// A real short write comes from the kernel itself instead, by a limit on the size of files that lies within the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Eio,
    Enospc,
    Eintr,
    Nothing,
    Short,
    Kill,
}

impl Fault {
    pub const ALL: [Self; 6] = [Self::Eio, Self::Enospc, Self::Eintr, Self::Nothing, Self::Short, Self::Kill];

    pub fn name(self) -> &'static str {
        match self {
            Self::Eio => "EIO",
            Self::Enospc => "ENOSPC",
            Self::Eintr => "EINTR",
            Self::Nothing => "takes 0",
            Self::Short => "short",
            Self::Kill => "SIGKILL",
        }
    }
}

/// A call as strace can be told to meet it again: the `nth` of its name on this path within its thread. strace counts
/// per thread. So where two threads make the same call on the same path, one injection may meet the nth of both; where
/// it kills, it meets whichever comes first. Paths, not descriptors: they are the same in every run.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub path: String,
    pub nth: usize,
    /// How many threads made an nth such call.
    pub threads: usize,
    /// The file is made by it, if it is an open.
    creates: bool,
    /// Bytes and offset of a write.
    range: Option<(u64, u64)>,
}

impl Call {
    /// Only what this call can meet: a full disk does not fail a read.
    pub fn faults(&self) -> Vec<Fault> {
        let name = self.name.as_str();
        let opens = name.starts_with("open");
        let takes_space =
            ["mkdir", "rename", "link", "fallocate", "ftruncate", "write", "pwrite", "fsync", "fdatasync"];
        let waits = ["read", "pread", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "fallocate", "flock"];
        let is_of = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
        let mut faults = vec![Fault::Eio];
        if is_of(&takes_space) || self.creates {
            faults.push(Fault::Enospc);
        }
        if is_of(&waits) || opens {
            faults.push(Fault::Eintr);
        }
        if is_of(&["write", "pwrite"]) {
            faults.push(Fault::Nothing);
        }
        if self.middle().is_some() {
            faults.push(Fault::Short);
        }
        faults.push(Fault::Kill);
        faults
    }

    /// What strace is told; `None` where it is not strace that does it.
    pub fn injection(&self, fault: Fault) -> Option<String> {
        let what = match fault {
            Fault::Eio => "error=EIO",
            Fault::Enospc => "error=ENOSPC",
            Fault::Eintr => "error=EINTR",
            Fault::Nothing => "retval=0",
            Fault::Kill => "signal=SIGKILL",
            Fault::Short => return None,
        };
        Some(format!("inject={}:{what}:when={}", self.name, self.nth))
    }

    /// The size of a file at which this write is cut in two. The program's own memory file, of three pages, must fit.
    pub fn middle(&self) -> Option<u64> {
        let (bytes, offset) = self.range.filter(|_| self.name == "pwrite64")?;
        Some(offset + bytes / 2).filter(|middle| *middle > 12_288 && bytes > 1)
    }
}

/// What was counted in one run.
pub struct Counted {
    /// In the order of their first appearance.
    pub calls: Vec<Call>,
    /// By name, every call of every thread.
    pub totals: BTreeMap<String, usize>,
}

/// Reads strace's own log (`-f -y`). Only calls on what lies in `dir` count.
pub fn count(log: &str, dir: &str) -> Counted {
    let mut seen: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    let mut place: BTreeMap<(String, String, usize), usize> = BTreeMap::new();
    let mut counted = Counted { calls: Vec::new(), totals: BTreeMap::new() };
    for line in log.lines() {
        let Some((thread, name, path, arguments)) = parse(line, dir) else { continue };
        *counted.totals.entry(name.clone()).or_default() += 1;
        let nth = seen.entry((thread, name.clone(), path.clone())).or_default();
        *nth += 1;
        match place.get(&(name.clone(), path.clone(), *nth)) {
            Some(at) => counted.calls[*at].threads += 1,
            None => {
                place.insert((name.clone(), path.clone(), *nth), counted.calls.len());
                let creates = arguments.contains("O_CREAT");
                let range = range(arguments);
                counted.calls.push(Call { name, path, nth: *nth, threads: 1, creates, range });
            }
        }
    }
    counted
}

/// Thread, call, first path in `dir`, and all arguments.
fn parse<'a>(line: &'a str, dir: &str) -> Option<(String, String, String, &'a str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, arguments) = rest.trim_start().split_once('(')?;
    let is_call = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let at = arguments.find(dir).filter(|_| is_call)?;
    let rest = &arguments[at..];
    let path = &rest[..rest.find(['"', '>'])?];
    let inside = path.len() == dir.len() || path[dir.len()..].starts_with('/');
    inside.then(|| (thread.to_owned(), name.to_owned(), path.to_owned(), arguments))
}

/// The last two arguments of a `pwrite64`: how many bytes, and where.
fn range(arguments: &str) -> Option<(u64, u64)> {
    let (arguments, _) = arguments.rsplit_once(')').or_else(|| arguments.split_once(" <unfinished"))?;
    let mut last = arguments.rsplit(", ");
    let offset = last.next()?.parse().ok()?;
    Some((last.next()?.parse().ok()?, offset))
}

/// How many calls a kill never meets, because another thread makes the same call before.
pub fn shadowed(calls: &[Call]) -> usize {
    calls.iter().map(|call| call.threads - 1).sum()
}

/// Every path that occurs, for strace's `-P`.
pub fn paths(calls: &[Call]) -> BTreeSet<&str> {
    calls.iter().map(|call| call.path.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"11 openat(AT_FDCWD</src>, "/s/vram/a.tmp", O_RDWR|O_CREAT|O_EXCL, 0600) = 4</s/vram/a.tmp>
11 pwrite64(4</s/vram/a.tmp>, ""..., 88, 20000) = 88
11 openat(AT_FDCWD</src>, "/src/small.bin", O_RDONLY) = 5</src/small.bin>
12 pwrite64(4</s/vram/a.tmp>, ""..., 100, 20088 <unfinished ...>
12 <... pwrite64 resumed>) = 100
12 pwrite64(4</s/vram/a.tmp>, ""..., 60, 200) = 60
11 rename("/s/vram/a.tmp", "/s/vram/a") = 0
11 statx(3</s/vramx>, "", AT_EMPTY_PATH, STATX_ALL, 0x7ffc) = 0
11 +++ exited with 0 +++
"#;

    #[test]
    fn calls_are_counted_by_thread_name_and_path() {
        let counted = count(LOG, "/s/vram");
        let shown: Vec<_> =
            counted.calls.iter().map(|call| format!("{} {} {}", call.name, call.nth, call.threads)).collect();
        assert_eq!(shown, ["openat 1 1", "pwrite64 1 2", "pwrite64 2 1", "rename 1 1"]);
        assert_eq!(counted.totals["pwrite64"], 3);
        assert_eq!(shadowed(&counted.calls), 1);
        assert_eq!(paths(&counted.calls).into_iter().collect::<Vec<_>>(), ["/s/vram/a.tmp"]);
    }

    #[test]
    fn only_faults_that_a_call_can_meet() {
        use Fault::{Eintr, Eio, Enospc, Kill, Nothing, Short};
        let calls = count(LOG, "/s/vram").calls;
        assert_eq!(calls[0].faults(), [Eio, Enospc, Eintr, Kill]);
        assert_eq!(calls[1].faults(), [Eio, Enospc, Eintr, Nothing, Short, Kill]);
        assert_eq!(calls[2].faults(), [Eio, Enospc, Eintr, Nothing, Kill], "the memory file would not fit");
        assert_eq!(calls[1].middle(), Some(20_044));
        assert_eq!(calls[2].injection(Nothing).as_deref(), Some("inject=pwrite64:retval=0:when=2"));
        assert_eq!(calls[3].injection(Kill).as_deref(), Some("inject=rename:signal=SIGKILL:when=1"));
    }
}
