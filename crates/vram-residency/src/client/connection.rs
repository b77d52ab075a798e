//! One connection: a thread that reads, and whoever asks.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::{ClientError, Daemon};
use crate::handout::{Answer, ErrorCode, FrameError, Incoming, MAX_ANSWER, OLDEST_VERSION, Request, VERSION, encode};
use crate::shard::ShardState;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read at one time.
const PIECE: usize = 64 << 10;
/// Answers that may lie there unread: nobody asks for more than two at once.
const UNREAD: usize = 4;
/// How a connection to the control socket ends: with an HTTP server's refusal of our first frame.
const HTTP: &str = "it speaks HTTP";
/// Stack of the reading thread.
const STACK: usize = 256 << 10;

/// An answer, and the descriptor that came with it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    pub(super) file: Option<OwnedFd>,
}

/// What was last heard of a lease.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) state: ShardState,
    pub(super) oldest_age: Duration,
    /// How often it was not to be relied on.
    pub(super) lapses: u64,
    /// Why nobody watches it any more, where the daemon said so.
    pub(super) ended: Option<String>,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: Arc<UnixStream>,
    shared: Arc<Shared>,
    /// Held by who asks: one question at a time.
    turn: Mutex<()>,
    reader: Option<JoinHandle<()>>,
    daemon: Daemon,
    /// The version of the protocol that is spoken.
    version: u32,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    replies: VecDeque<Reply>,
    /// Why the connection is over.
    over: Option<String>,
    leases: BTreeMap<u64, Heard>,
    heard_at: Instant,
}

impl Connection {
    /// Connects, and speaks the newest version of the protocol that the daemon speaks too.
    pub(super) fn open(path: &Path) -> Result<Self, ClientError> {
        match Self::open_with(path, VERSION) {
            Err(ClientError::Refused { code: ErrorCode::Version, .. }) => Self::open_with(path, OLDEST_VERSION),
            opened => opened,
        }
    }

    fn open_with(path: &Path, version: u32) -> Result<Self, ClientError> {
        let cannot = |source| ClientError::Connect { socket: path.to_owned(), source };
        let socket = Arc::new(UnixStream::connect(path).map_err(cannot)?);
        socket.set_write_timeout(Some(PATIENCE)).map_err(cannot)?;
        let state = State { replies: VecDeque::new(), over: None, leases: BTreeMap::new(), heard_at: Instant::now() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let reader = std::thread::Builder::new().name("vram-client".to_owned()).stack_size(STACK);
        let reader = reader.spawn({
            let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
            move || shared.end(&read_all(&socket, &shared))
        });
        let daemon = Daemon { software: String::new(), worker_id: String::new(), period: Duration::ZERO };
        let mut connection = Self { socket, shared, turn: Mutex::new(()), reader: None, daemon, version };
        connection.reader = Some(reader.map_err(cannot)?);
        let answer = connection.ask(&Request::Hello { version }).map_err(|error| {
            let is_http = connection.shared.lock().over.as_deref() == Some(HTTP);
            if is_http { ClientError::ControlSocket { socket: path.to_owned() } } else { error }
        })?;
        match answer.answer {
            Answer::Hello { version: spoken, software, worker_id, period_ns } if spoken == version => {
                connection.daemon = Daemon { software, worker_id, period: Duration::from_nanos(period_ns) };
                Ok(connection)
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    pub(super) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        self.ask_for(request, |_| Ok(None)).map(|(reply, _)| reply)
    }

    /// Asks for what is answered in two parts.
    pub(super) fn ask_for_two(&self, request: &Request) -> Result<(Reply, Reply), ClientError> {
        let (first, second) = self.ask_for(request, |deadline| self.shared.next(deadline).map(Some))?;
        Ok((first, second.ok_or_else(|| protocol("half of an answer is missing"))?))
    }

    fn ask_for(
        &self,
        request: &Request,
        more: impl FnOnce(Instant) -> Result<Option<Reply>, ClientError>,
    ) -> Result<(Reply, Option<Reply>), ClientError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = encode(request).map_err(|error| protocol(&error.to_string()))?;
        let now = Instant::now();
        let deadline = now.checked_add(PATIENCE).unwrap_or(now);
        // Why it could not be sent is often in what was said before.
        let sent = send_all(&self.socket, &frame);
        let answered = self.shared.next(deadline).and_then(|first| Ok((first, more(deadline)?)));
        if let Err(ClientError::Protocol { .. }) = &answered {
            // Whatever still comes would be taken for the answer to something else.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
        match (sent, answered) {
            (Err(error), Err(ClientError::Lost { .. })) => Err(ClientError::Lost { reason: error.to_string() }),
            (_, answered) => answered,
        }
    }

    /// What was last heard of a lease, and how long ago anything was heard; or why nothing will be heard any more.
    pub(super) fn heard(&self, lease: u64) -> Result<(Heard, Duration), String> {
        self.shared.lock().heard(lease)
    }

    /// Waits until something is heard, for `limit` at most, unless `enough` holds already.
    pub(super) fn wait(
        &self,
        limit: Duration,
        enough: impl FnOnce(Result<(Heard, Duration), String>) -> bool,
        lease: u64,
    ) {
        let state = self.shared.lock();
        if !enough(state.heard(lease)) {
            let _ = self.shared.changed.wait_timeout(state, limit);
        }
    }

    pub(super) fn forget(&self, lease: u64) {
        self.shared.lock().leases.remove(&lease);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl State {
    fn heard(&self, lease: u64) -> Result<(Heard, Duration), String> {
        if let Some(reason) = &self.over {
            return Err(reason.clone());
        }
        match self.leases.get(&lease) {
            Some(Heard { ended: Some(reason), .. }) => Err(reason.clone()),
            Some(heard) => Ok((heard.clone(), self.heard_at.elapsed())),
            None => Err("it was given back".to_owned()),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next answer.
    fn next(&self, deadline: Instant) -> Result<Reply, ClientError> {
        let mut state = self.lock();
        loop {
            if let Some(reply) = state.replies.pop_front() {
                return match reply.answer {
                    Answer::Error { code, message } => Err(ClientError::Refused { code, message }),
                    answer => Ok(Reply { answer, ..reply }),
                };
            }
            if let Some(reason) = &state.over {
                return Err(ClientError::Lost { reason: reason.clone() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(protocol("it does not answer"));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self, reason: &str) {
        self.lock().over.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_all();
    }

    /// Takes what the daemon said; the connection ends where it says too much.
    fn hear(&self, answer: Answer, file: Option<OwnedFd>) -> Result<(), String> {
        let mut state = self.lock();
        state.heard_at = Instant::now();
        match answer {
            Answer::State { lease, state: now, oldest_age_ns, lapses } => {
                if let Some(heard) = state.leases.get_mut(&lease) {
                    heard.state = now;
                    heard.oldest_age = Duration::from_nanos(oldest_age_ns);
                    heard.lapses = lapses;
                }
            }
            Answer::Ended { lease, reason } => {
                if let Some(heard) = state.leases.get_mut(&lease) {
                    heard.ended = Some(reason);
                }
            }
            Answer::Bye { reason } => return Err(reason),
            answer if state.replies.len() < UNREAD => {
                let attached = match &answer {
                    Answer::Attached(attached) => Some((attached.lease, &attached.shard)),
                    Answer::AttachedCuda(attached) => Some((attached.lease, &attached.shard)),
                    _ => None,
                };
                if let Some((lease, shard)) = attached {
                    let oldest_age = Duration::from_nanos(shard.oldest_age_ns);
                    let heard = Heard { state: shard.state, oldest_age, lapses: shard.lapses, ended: None };
                    state.leases.insert(lease, heard);
                }
                state.replies.push_back(Reply { answer, file });
            }
            _ => return Err("it answers what was not asked".to_owned()),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

/// Reads until the connection ends, and says why it did.
fn read_all(socket: &UnixStream, shared: &Shared) -> String {
    let mut incoming = Incoming::new(MAX_ANSWER);
    let mut piece = Vec::new();
    let mut file = None;
    loop {
        piece.resize(incoming.missing().min(PIECE), 0);
        let read = match receive(socket, &mut piece, &mut file) {
            Ok(0) => return "the daemon is gone".to_owned(),
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(error) => return io::Error::from(error).to_string(),
        };
        let body = match incoming.take(piece.get(..read).unwrap_or_default()) {
            Ok(Some(body)) => body,
            Ok(None) => continue,
            Err(FrameError::Length { length, .. }) if length.to_le_bytes() == *b"HTTP" => return HTTP.to_owned(),
            Err(error) => return error.to_string(),
        };
        let heard = match serde_json::from_slice(&body) {
            Ok(answer) => shared.hear(answer, file.take()),
            Err(error) => Err(format!("it says what is not understood: {error}")),
        };
        if let Err(reason) = heard {
            return reason;
        }
    }
}

/// Reads, and keeps a descriptor that comes along. More than one is closed.
fn receive(socket: &UnixStream, piece: &mut [u8], file: &mut Option<OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(piece)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            for received in files {
                file.get_or_insert(received);
            }
        }
    }
    Ok(received.bytes)
}

/// A signal for a broken connection would end a program that does not expect it.
fn send_all(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn protocol(what: &str) -> ClientError {
    ClientError::Protocol { what: what.to_owned() }
}

pub(super) fn unexpected(answer: &Answer) -> ClientError {
    protocol(&format!("its answer is not to what was asked: {answer:.80?}"))
}
