//! Frames: a length, then so many bytes. Nothing is allocated for a length that was only announced.

use std::io;

use serde::Serialize;

use super::MAX_ANSWER;

/// Bytes of the length.
const HEAD: usize = 4;

/// What arrives is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Empty, or longer than the reader takes.
    #[error("a frame of {length} bytes was announced; 1 to {limit} are taken")]
    Length {
        /// What was announced.
        length: u32,
        /// The most that is taken.
        limit: usize,
    },
    /// What was to be sent does not fit into a frame.
    #[error("a message of {length} bytes does not fit into a frame, which takes {MAX_ANSWER}")]
    TooLarge {
        /// Its length.
        length: usize,
    },
}

/// A message as a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] where it has more than [`MAX_ANSWER`] bytes.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEAD];
    // Writing plain data into memory cannot fail.
    let _ = serde_json::to_writer(&mut frame, message);
    let length = frame.len().saturating_sub(HEAD);
    let announced = u32::try_from(length).ok().filter(|_| length <= MAX_ANSWER);
    let announced = announced.ok_or(FrameError::TooLarge { length })?;
    if let Some(head) = frame.first_chunk_mut::<HEAD>() {
        *head = announced.to_le_bytes();
    }
    Ok(frame)
}

/// Bytes that the body of a message's frame has, without making it: more than [`MAX_ANSWER`] cannot be sent.
#[must_use]
pub fn encoded_length(message: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Writing plain data cannot fail, and neither can counting.
    let _ = serde_json::to_writer(&mut count, message);
    count.0
}

/// Puts frames together from what arrives. Never asks for more than belongs to the frame at hand, so that what travels
/// beside a frame's first byte cannot be mistaken for another's.
#[derive(Debug)]
pub struct Incoming {
    limit: usize,
    head: [u8; HEAD],
    /// Bytes of the head that are there.
    headed: usize,
    /// Length of the body, once the head is there.
    length: usize,
    body: Vec<u8>,
}

impl Incoming {
    /// For a reader that takes bodies of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, head: [0; HEAD], headed: 0, length: 0, body: Vec::new() }
    }

    /// Bytes that are still missing up to the end of the head or of the body: read at most so many.
    #[must_use]
    pub fn missing(&self) -> usize {
        if self.headed < HEAD { HEAD.saturating_sub(self.headed) } else { self.length.saturating_sub(self.body.len()) }
    }

    /// Whether a frame has begun and is not complete.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.headed > 0
    }

    /// Takes what was read, at most [`Incoming::missing`] bytes of it, and gives the body that it completes.
    ///
    /// # Errors
    /// [`FrameError::Length`] where the announced length is refused; the connection is then good for nothing.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
        let bytes = bytes.get(..self.missing()).unwrap_or(bytes);
        if self.headed < HEAD {
            for (place, byte) in self.head.iter_mut().skip(self.headed).zip(bytes) {
                *place = *byte;
            }
            self.headed = self.headed.saturating_add(bytes.len());
            if self.headed == HEAD {
                let length = u32::from_le_bytes(self.head);
                let refused = FrameError::Length { length, limit: self.limit };
                self.length = usize::try_from(length).map_err(|_| refused)?;
                if !(1..=self.limit).contains(&self.length) {
                    return Err(refused);
                }
            }
            return Ok(None);
        }
        self.body.extend_from_slice(bytes);
        if self.body.len() < self.length {
            return Ok(None);
        }
        self.headed = 0;
        Ok(Some(std::mem::take(&mut self.body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds bytes in pieces of so many, as a reader that obeys `missing` would.
    fn feed(incoming: &mut Incoming, mut bytes: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut bodies = Vec::new();
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(incoming.missing().min(piece).min(bytes.len()));
            bodies.extend(incoming.take(now)?);
            bytes = rest;
        }
        Ok(bodies)
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let messages = ["a".to_owned(), "b".repeat(3000)];
        let stream = messages.iter().flat_map(|message| encode(message).unwrap()).collect::<Vec<_>>();
        assert_eq!(stream.len(), messages.iter().map(|message| HEAD + encoded_length(message)).sum::<usize>());
        for piece in [1, 2, 3, 4, 5, 7, 4096] {
            let bodies = feed(&mut Incoming::new(4096), &stream, piece).unwrap();
            assert_eq!(bodies.len(), 2);
            for (body, message) in bodies.iter().zip(&messages) {
                assert_eq!(serde_json::from_slice::<String>(body).unwrap(), *message);
            }
        }
    }

    #[test]
    fn lengths_that_are_too_large_or_zero_are_refused_before_a_byte_is_kept() {
        for length in [0_u32, 4097, 1 << 20, u32::MAX] {
            let mut incoming = Incoming::new(4096);
            let answer = feed(&mut incoming, &length.to_le_bytes(), 4);
            assert_eq!(answer, Err(FrameError::Length { length, limit: 4096 }));
            assert_eq!(incoming.body.capacity(), 0);
        }
        let mut incoming = Incoming::new(4096);
        assert!(feed(&mut incoming, &4096_u32.to_le_bytes(), 4).unwrap().is_empty());
        assert_eq!((incoming.missing(), incoming.body.capacity()), (4096, 0), "announced is not arrived");
    }
}
