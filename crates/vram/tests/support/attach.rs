//! The attach socket as somebody meets it who speaks the protocol without our client library.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde_json::{Value, json};

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

impl Raw {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(super::daemon::WAIT)).unwrap();
        Self { stream }
    }

    /// Connected and introduced.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        let hello = raw.ask(&json!({ "type": "hello", "version": 1 }));
        assert_eq!(hello["type"], "hello", "{hello}");
        raw
    }

    pub(crate) fn send(&mut self, message: &Value) {
        self.send_bytes(message.to_string().as_bytes());
    }

    pub(crate) fn send_bytes(&mut self, body: &[u8]) {
        self.stream.write_all(&frame(body)).unwrap();
    }

    /// A message, and the descriptor that came with it.
    pub(crate) fn receive(&mut self) -> (Value, Option<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut head = [0; 4];
        let read = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let read = read.unwrap().bytes;
        assert_ne!(read, 0, "it hung up");
        let mut file = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                for received in files {
                    assert!(file.replace(received).is_none(), "one descriptor at most");
                }
            }
        }
        self.stream.read_exact(&mut head[read..]).unwrap();
        let mut body = vec![0; u32::from_le_bytes(head) as usize];
        self.stream.read_exact(&mut body).unwrap();
        (serde_json::from_slice(&body).unwrap(), file)
    }

    pub(crate) fn ask(&mut self, message: &Value) -> Value {
        self.send(message);
        self.receive().0
    }

    /// Attaches a shard: what was said of it, and its descriptor.
    pub(crate) fn attach(&mut self, shard: &str) -> (Value, OwnedFd) {
        self.send(&json!({ "type": "attach", "shard": shard }));
        let (attached, file) = self.receive();
        assert_eq!(attached["type"], "attached", "{attached}");
        let (tensors, none) = self.receive();
        assert!(tensors["type"] == "tensors" && none.is_none(), "{tensors}");
        (attached, file.expect("a descriptor"))
    }

    /// Sends bytes with a descriptor beside them.
    pub(crate) fn send_with(&self, bytes: &[u8], file: BorrowedFd<'_>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let _ = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// Whether the daemon hangs up within a while; reads what it still says.
    pub(crate) fn is_hung_up(&mut self, within: Duration) -> bool {
        self.stream.set_read_timeout(Some(within)).unwrap();
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_le_bytes(), body].concat()
}
