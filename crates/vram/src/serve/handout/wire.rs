//! One connection's bytes, in both directions.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use vram_residency::handout::{ErrorCode, Incoming, MAX_REQUEST};

use super::rules::Refusal;

/// How long a client may take for the next piece of an answer.
const READ_TIME: Duration = Duration::from_secs(10);
/// Bytes of such a piece, or what is left where that is less: who reads slower than this has read nothing.
const READ_BYTES: usize = 64 << 10;
/// Bytes of answers that a client may leave unread before the daemon waits for it.
const SEND_BUFFER: usize = 4096;
/// How long to wait where the kernel takes no more descriptors.
const CROWDED: Duration = Duration::from_millis(20);
/// How long a request may take from its first byte to its last.
const FRAME_TIME: Duration = Duration::from_secs(5);

pub(super) struct Wire {
    stream: UnixStream,
    incoming: Incoming,
    /// When the frame at hand began.
    begun: Option<Instant>,
    /// How long the client may take to read a piece.
    patience: Duration,
}

/// What came.
pub(super) enum Came {
    Frame(Vec<u8>),
    /// The client is gone.
    End,
    /// It cannot go on.
    Wrong(Refusal),
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        // The kernel counts descriptors that nobody has taken yet against the sender: few fit into this.
        let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
        Self { stream, incoming: Incoming::new(MAX_REQUEST), begun: None, patience: READ_TIME }
    }

    /// The next frame. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> Came {
        loop {
            let mut piece = [0; MAX_REQUEST];
            let wanted = self.incoming.missing().min(piece.len());
            let read = self
                .stream
                .async_io(Interest::READABLE, || receive(&self.stream, piece.get_mut(..wanted).unwrap_or_default()));
            let (read, descriptors) = match read.await {
                Ok(read) => read,
                Err(_) => return Came::End,
            };
            if descriptors {
                let message = "descriptors are not taken here; send requests only";
                return Came::Wrong(Refusal::new(ErrorCode::Descriptor, message));
            }
            if read == 0 {
                return Came::End;
            }
            self.begun.get_or_insert_with(Instant::now);
            match self.incoming.take(piece.get(..read).unwrap_or_default()) {
                Ok(Some(body)) => {
                    self.begun = None;
                    return Came::Frame(body);
                }
                Ok(None) => {}
                Err(error) => return Came::Wrong(Refusal::new(ErrorCode::Malformed, error.to_string())),
            }
        }
    }

    /// Whether the client has closed its end, also where not all that it sent was read.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let answer = poll(&mut polled, Some(&now));
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        answer.is_ok() && polled.iter().any(|polled| polled.revents().intersects(gone))
    }

    /// Whether the frame at hand takes too long.
    pub(super) fn is_late(&self) -> bool {
        self.begun.is_some_and(|begun| begun.elapsed() > FRAME_TIME)
    }

    /// Sends a frame, with a descriptor beside its first byte. A long one may take long, as long as the client reads on.
    pub(super) async fn send(&self, frame: &[u8], mut file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        for piece in frame.chunks(READ_BYTES) {
            match tokio::time::timeout(self.patience, self.send_piece(piece, file.take())).await {
                Ok(sent) => sent?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }

    async fn send_piece(&self, mut piece: &[u8], mut file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        while !piece.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || transmit(&self.stream, piece, file)).await;
            let sent = match sent {
                // Too many descriptors are on their way to clients that do not read; `send` says for how long.
                Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                    tokio::time::sleep(CROWDED).await;
                    continue;
                }
                sent => sent?,
            };
            file = None;
            piece = piece.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Reads without room for descriptors: the kernel closes what was sent along before this process has it, and says so.
fn receive(stream: &UnixStream, piece: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut control = RecvAncillaryBuffer::default();
    let received = recvmsg(stream, &mut [IoSliceMut::new(piece)], &mut control, RecvFlags::DONTWAIT)?;
    Ok((received.bytes, received.flags.contains(ReturnFlags::CTRUNC)))
}

fn transmit(stream: &UnixStream, frame: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file]);
    if let Some(files) = &files
        && !control.push(SendAncillaryMessage::ScmRights(files))
    {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(stream, &[IoSlice::new(frame)], &mut control, flags)?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Sends a frame of 512 KiB to a client that reads so many bytes at a time and then rests.
    fn sent(at_a_time: usize, rest: Duration) -> (io::Result<()>, Duration) {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let reader = std::thread::spawn(move || {
            let mut piece = vec![0; at_a_time];
            while theirs.read(&mut piece).is_ok_and(|read| read > 0) {
                std::thread::sleep(rest);
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = Instant::now();
        let sent = runtime.block_on(async {
            let mut wire = Wire::new(UnixStream::from_std(ours).unwrap());
            wire.patience = Duration::from_millis(500);
            wire.send(&vec![7; 512 << 10], None).await
        });
        let took = begun.elapsed();
        // Not waited for: one who hardly reads has enough left for minutes.
        drop(reader);
        (sent, took)
    }

    #[test]
    fn a_long_frame_may_take_long_and_one_who_hardly_reads_is_not_waited_for() {
        // Far longer in all than a piece may take.
        let (sent_all, took) = sent(8 << 10, Duration::from_millis(20));
        assert!(sent_all.is_ok() && took > Duration::from_secs(1), "{sent_all:?} {took:?}");
        // Now and then a byte is no progress.
        let (refused, took) = sent(1, Duration::from_millis(20));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}
