//! A file system in memory that fails and loses power on command.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use audit_logging::vfs::{Access, Identity, Lock, Locked, Vfs, VfsFile};

pub const SECTOR: usize = 512;

/// SplitMix64: small, seeded, good enough.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// For ever, as a span.
pub const FOREVER: u64 = u64::MAX;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// With this error number.
    Os(i32),
    /// Writes take only half of the bytes; other calls work.
    Short,
    /// The power is gone: the state freezes here.
    PowerCut,
    /// The call takes so many milliseconds, then works.
    Hang(u64),
    /// The call takes so many milliseconds, then fails with EIO.
    HangAndFail(u64),
}

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The call that fails, counted from 1.
    pub at: u64,
    pub fault: Fault,
    /// How many calls fail in a row.
    pub span: u64,
    /// Only calls with this name count.
    pub only: Option<&'static str>,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

/// The root directory is there from the start; every other one is made, and survives once the one above was synced.
#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    durable_dirs: BTreeSet<PathBuf>,
    next_inode: u64,
    locked: BTreeSet<PathBuf>,
    calls: u64,
    counted: BTreeMap<&'static str, u64>,
    plans: Vec<Plan>,
    cut: bool,
    rng: Option<Rng>,
    /// Inodes on which a sync failed, to catch anybody who tries again.
    poisoned: BTreeSet<u64>,
    pub synced_after_failure: u64,
}

#[derive(Debug, Clone, Default)]
pub struct MemVfs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct MemFile {
    vfs: MemVfs,
    inode: u64,
}

#[derive(Debug)]
struct MemLock(MemVfs, PathBuf);

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.lock_state().locked.remove(&self.1);
    }
}

impl State {
    /// Counts the call; the fault that hits it, if any.
    fn call(&mut self, name: &'static str) -> Option<Fault> {
        if self.cut {
            return Some(Fault::Os(5));
        }
        self.calls += 1;
        *self.counted.entry(name).or_default() += 1;
        let hit = self.plans.iter().find(|plan| {
            let n = match plan.only {
                Some(only) if only != name => return false,
                Some(_) => self.counted[name],
                None => self.calls,
            };
            n >= plan.at && n - plan.at < plan.span
        })?;
        let fault = hit.fault;
        self.cut |= fault == Fault::PowerCut;
        match fault {
            Fault::Hang(ms) | Fault::HangAndFail(ms) => {
                // The whole file system hangs with it.
                std::thread::sleep(Duration::from_millis(ms));
                (fault == Fault::HangAndFail(ms)).then_some(Fault::Os(5))
            }
            other => Some(other),
        }
    }

    fn plain(&mut self, name: &'static str) -> io::Result<()> {
        match self.call(name) {
            Some(Fault::Os(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Fault::PowerCut) => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    }

    fn write(&mut self, inode: u64, bytes: &[u8], offset: usize) {
        let inode = self.inodes.get_mut(&inode).unwrap();
        let end = offset + bytes.len();
        if inode.data.len() < end {
            inode.data.resize(end, 0);
        }
        inode.data[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            inode.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }
}

fn copy_sector(from: &[u8], to: &mut [u8], sector: usize) {
    let range = sector * SECTOR..((sector + 1) * SECTOR).min(to.len()).min(from.len());
    if range.start < range.end {
        to[range.clone()].copy_from_slice(&from[range]);
    }
}

impl MemVfs {
    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn plan(&self, plan: impl IntoIterator<Item = Plan>) {
        let mut state = self.lock_state();
        state.plans = plan.into_iter().collect();
        state.calls = 0;
        state.counted.clear();
    }

    pub fn is_cut(&self) -> bool {
        self.lock_state().cut
    }

    pub fn calls(&self) -> u64 {
        self.lock_state().calls
    }

    pub fn counted(&self, name: &str) -> u64 {
        self.lock_state().counted.get(name).copied().unwrap_or(0)
    }

    pub fn synced_after_failure(&self) -> u64 {
        self.lock_state().synced_after_failure
    }

    pub fn seed(&self, seed: u64) {
        self.lock_state().rng = Some(Rng(seed));
    }

    /// What is on the disk after the power came back: of every file, any subset of the sectors not synced; of the names,
    /// those synced, or those of the moment.
    pub fn after_power_cut(&self, seed: u64) -> MemVfs {
        let state = self.lock_state();
        let mut rng = Rng(seed);
        let mut new = State { next_inode: state.next_inode, ..State::default() };
        let all = rng.chance(50);
        new.dirs = if all { state.dirs.clone() } else { state.durable_dirs.clone() };
        new.durable_dirs = new.dirs.clone();
        new.names = if all { state.names.clone() } else { state.durable_names.clone() };
        // A name is nowhere without its directory.
        new.names.retain(|path, _| path.parent().is_some_and(|dir| new.dirs.contains(dir)));
        new.durable_names = new.names.clone();
        for (&number, inode) in &state.inodes {
            let mut disk = inode.durable.clone();
            let keep_length = rng.chance(50);
            if disk.len() < inode.data.len() && keep_length {
                disk.resize(inode.data.len(), 0);
            }
            let percent = [0, 10, 50, 90, 100][rng.below(5) as usize];
            for &sector in &inode.dirty {
                if rng.chance(percent) {
                    copy_sector(&inode.data, &mut disk, sector);
                }
            }
            let inode = Inode { data: disk.clone(), durable: disk, dirty: BTreeSet::new() };
            new.inodes.insert(number, inode);
        }
        MemVfs { state: Arc::new(Mutex::new(new)) }
    }

    /// A copy of the present state, without faults, as another process would see it.
    pub fn copy(&self) -> MemVfs {
        let state = self.lock_state();
        let new = State {
            dirs: state.dirs.clone(),
            durable_dirs: state.durable_dirs.clone(),
            next_inode: state.next_inode,
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            inodes: state.inodes.clone(),
            ..State::default()
        };
        MemVfs { state: Arc::new(Mutex::new(new)) }
    }

    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.lock_state();
        state.inodes[&state.names[path]].data.clone()
    }

    pub fn set_bytes(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.lock_state();
        let number = match state.names.get(path) {
            Some(&number) => number,
            None => {
                state.next_inode += 1;
                let number = state.next_inode;
                state.names.insert(path.to_owned(), number);
                number
            }
        };
        let inode = Inode { data: bytes.to_vec(), durable: bytes.to_vec(), dirty: BTreeSet::new() };
        state.inodes.insert(number, inode);
        state.dirs.extend(path.ancestors().skip(1).map(Path::to_owned));
        state.durable_names = state.names.clone();
        state.durable_dirs = state.dirs.clone();
    }

    /// The names in a directory.
    pub fn names(&self, dir: &Path) -> Vec<String> {
        let state = self.lock_state();
        let here = state.names.keys().filter(|path| path.parent() == Some(dir));
        here.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// Every file.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock_state().names.keys().cloned().collect()
    }

    /// Flips a bit of a byte.
    pub fn flip(&self, path: &Path, at: usize) {
        let mut bytes = self.bytes(path);
        bytes[at] ^= 0x10;
        self.set_bytes(path, &bytes);
    }

    pub fn delete(&self, path: &Path) {
        let mut state = self.lock_state();
        state.names.remove(path);
        state.durable_names.remove(path);
    }
}

impl VfsFile for MemFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.vfs.lock_state();
        state.plain("read")?;
        let data = &state.inodes[&self.inode].data;
        let start = (offset as usize).min(data.len());
        let n = buffer.len().min(data.len() - start);
        buffer[..n].copy_from_slice(&data[start..start + n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.vfs.lock_state();
        match state.call("write") {
            None | Some(Fault::Hang(_) | Fault::HangAndFail(_)) => {
                state.write(self.inode, bytes, offset as usize);
                Ok(bytes.len())
            }
            Some(Fault::Short) => {
                let n = bytes.len().div_ceil(2);
                state.write(self.inode, &bytes[..n], offset as usize);
                Ok(n)
            }
            Some(Fault::PowerCut) => {
                let mut rng = state.rng.clone().unwrap_or(Rng(1));
                let n = rng.below(bytes.len() as u64 + 1) as usize;
                state.write(self.inode, &bytes[..n], offset as usize);
                Err(io::Error::from_raw_os_error(5))
            }
            Some(Fault::Os(code)) => {
                // An error does not say that nothing was written.
                if let Some(rng) = &mut state.rng
                    && code != 4
                {
                    let n = rng.below(bytes.len() as u64 + 1) as usize;
                    state.write(self.inode, &bytes[..n], offset as usize);
                }
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.vfs.lock_state();
        let fault = state.call("sync");
        let mut rng = state.rng.clone().unwrap_or(Rng(7));
        if state.poisoned.contains(&self.inode) {
            state.synced_after_failure += 1;
        }
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        match fault {
            None | Some(Fault::Short | Fault::Hang(_) | Fault::HangAndFail(_)) => {
                inode.durable = inode.data.clone();
                inode.dirty.clear();
                Ok(())
            }
            Some(Fault::PowerCut) => Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Os(code)) => {
                // As Linux does: the pages that could not be written are marked clean, the next sync says nothing of them.
                let dirty = std::mem::take(&mut inode.dirty);
                if inode.durable.len() < inode.data.len() {
                    inode.durable.resize(inode.data.len(), 0);
                }
                for sector in dirty {
                    if rng.chance(50) {
                        let Inode { data, durable, .. } = inode;
                        copy_sector(data, durable, sector);
                    }
                }
                state.poisoned.insert(self.inode);
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        let mut state = self.vfs.lock_state();
        state.plain("length")?;
        Ok(state.inodes[&self.inode].data.len() as u64)
    }

    fn identity(&self) -> io::Result<Identity> {
        let mut state = self.vfs.lock_state();
        state.plain("fstat")?;
        let links = state.names.values().filter(|&&inode| inode == self.inode).count() as u64;
        Ok(Identity { device: 1, inode: self.inode, links })
    }
}

impl Vfs for MemVfs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.plain("mkdir")?;
        for dir in dir.ancestors() {
            state.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.lock_state();
        state.plain("list")?;
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state
            .names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .map(|path| path.file_name().unwrap().to_owned())
            .collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn VfsFile>> {
        let mut state = self.lock_state();
        state.plain("open")?;
        let inode = match access {
            Access::Create => {
                if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                state.next_inode += 1;
                let number = state.next_inode;
                state.inodes.insert(number, Inode::default());
                state.names.insert(path.to_owned(), number);
                number
            }
            _ => *state.names.get(path).ok_or(io::ErrorKind::NotFound)?,
        };
        Ok(Box::new(MemFile { vfs: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.plain("rename")?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.plain("remove")?;
        state.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.plain("rmdir")?;
        if state.names.keys().any(|path| path.parent() == Some(dir)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.dirs.remove(dir);
        state.durable_dirs.remove(dir);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.plain("syncdir")?;
        let State { names, durable_names, dirs, durable_dirs, .. } = &mut *state;
        durable_names.retain(|path, _| path.parent() != Some(dir) || names.contains_key(path));
        durable_names.extend(
            names.iter().filter(|(path, _)| path.parent() == Some(dir)).map(|(path, inode)| (path.clone(), *inode)),
        );
        durable_dirs.extend(dirs.iter().filter(|path| path.parent() == Some(dir)).cloned());
        Ok(())
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        let mut state = self.lock_state();
        state.plain("stat")?;
        if state.dirs.contains(path) {
            return Ok(Identity { device: 1, inode: u64::MAX, links: 2 });
        }
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Identity { device: 1, inode, links: 1 })
    }

    fn lock(&self, path: &Path) -> io::Result<Locked> {
        let mut state = self.lock_state();
        state.plain("lock")?;
        if !state.locked.insert(path.to_owned()) {
            return Ok(Locked::Theirs { pid: None });
        }
        Ok(Locked::Ours(Box::new(MemLock(self.clone(), path.to_owned()))))
    }
}
