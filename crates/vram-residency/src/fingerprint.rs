//! The keyed fingerprint: a check of a whole region that costs less than hashing it, for frequent re-checks.
//!
//! `docs/kernels.md`, section 3, defines it, and says what it guarantees and what not. In short: two different contents have
//! the same fingerprint with a probability of at most 2^-128, as long as whoever chose them had not seen the key. So each key
//! is drawn by chance, its fingerprint is taken while the content is trusted, and it is used for one check. The device computes
//! both, so it has each key twice, and between the two only the host has it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of the first key: 1030 little-endian words.
pub const WORDS_BYTES: usize = 1030 * 4;
/// Bytes of the second key.
pub const TAG_KEY_BYTES: usize = 32;
/// Bytes of both keys, one behind the other.
pub const KEYS_BYTES: usize = WORDS_BYTES + TAG_KEY_BYTES;

/// Sets the expansion apart from every other use of BLAKE3.
const CONTEXT: &str = "vram-residency fingerprint key v1";

/// A secret from which both keys of a fingerprint follow: 32 bytes. Wiped when it is dropped, and never printed.
pub struct FingerprintKey([u8; 32]);

impl FingerprintKey {
    /// Becomes a key that nobody has seen, where it lies: a secret that is moved leaves a copy behind.
    ///
    /// # Errors
    /// The system has no random numbers.
    fn draw(&mut self) -> io::Result<()> {
        let got = rustix::rand::getrandom(&mut self.0, rustix::rand::GetRandomFlags::empty())?;
        if got == self.0.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The key of a secret. For tests and other implementations: what is used twice, or was seen, is none.
    #[must_use]
    pub const fn from_secret(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// Writes both keys: the words first, then the key of the tag. They are BLAKE3's extended output in its mode of deriving
    /// keys, for the context `vram-residency fingerprint key v1`.
    pub fn expand(&self, keys: &mut [u8; KEYS_BYTES]) {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.0);
        let mut output = hasher.finalize_xof();
        output.fill(keys);
        hasher.zeroize();
        output.zeroize();
    }
}

impl Drop for FingerprintKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Nothing of the key.
impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey")
    }
}

/// The fingerprint of a region under some key: 256 bits that say as much as 128. `==` takes constant time. Never printed: who
/// knows what is expected can pretend to have it.
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
impl Eq for Fingerprint {}

impl Drop for Fingerprint {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Nothing of its bytes.
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint")
    }
}

/// A key that is still to be used, and the fingerprint that a region had under it when it was drawn.
pub(crate) struct Spare {
    pub(crate) key: FingerprintKey,
    pub(crate) expected: Fingerprint,
}

impl Spare {
    /// A place for one.
    const fn empty() -> Self {
        Self { key: FingerprintKey([0; 32]), expected: Fingerprint([0; 32]) }
    }

    fn wipe(&mut self) {
        self.key.0.zeroize();
        self.expected.0.zeroize();
    }
}

/// No key could be drawn.
#[derive(Debug)]
pub(crate) enum NotDrawn<E> {
    /// The system has no random numbers.
    Random(io::Error),
    /// What the taking of its fingerprint answered.
    Taken(E),
}

/// The keys that a shard still has. Each is used for one check.
///
/// They are drawn one by one, and are good for nothing until a hash of every byte has vouched for all of their fingerprints.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Mutex<Kept>,
    /// How many may be used; read without waiting for a check that is under way.
    left: AtomicU32,
    /// How often the bytes were not to be relied on.
    doubts: AtomicU64,
}

#[derive(Default)]
struct Kept {
    /// As long as needed from the start, and filled where it lies.
    spares: Box<[Spare]>,
    /// How many of them were drawn.
    drawn: usize,
    /// How many of them were used.
    used: usize,
    /// Whether they may be used.
    vouched: bool,
    /// Doubts before the first was drawn.
    doubts: u64,
}

impl Spares {
    /// How many keys are left.
    pub(crate) fn left(&self) -> u32 {
        self.left.load(Ordering::Acquire)
    }

    /// The bytes are not to be relied on now: what was drawn and is not vouched for never will be.
    pub(crate) fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// Draws the next of `count` keys, and has the region's fingerprint taken with it. False where all are drawn, or the device
    /// takes none. What was drawn before a doubt, or is in use, is wiped first, and the drawing begins anew.
    pub(crate) fn draw<E>(
        &self,
        count: u16,
        take: impl FnOnce(&FingerprintKey) -> Result<Option<Fingerprint>, E>,
    ) -> Result<bool, NotDrawn<E>> {
        let mut kept = self.kept();
        let doubts = self.doubts.load(Ordering::Acquire);
        if kept.vouched || kept.doubts != doubts || kept.spares.is_empty() {
            let spares = (0..count).map(|_| Spare::empty()).collect();
            *kept = Kept { spares, doubts, ..Kept::default() };
            self.count(&kept);
        }
        let next = kept.drawn;
        let Some(spare) = kept.spares.get_mut(next) else { return Ok(false) };
        spare.key.draw().map_err(NotDrawn::Random)?;
        match take(&spare.key) {
            Ok(Some(taken)) => spare.expected.0.copy_from_slice(&taken.0),
            Ok(None) => {
                *kept = Kept::default();
                return Ok(false);
            }
            Err(error) => {
                spare.wipe();
                return Err(NotDrawn::Taken(error));
            }
        }
        kept.drawn = next.saturating_add(1);
        Ok(true)
    }

    /// Whether any key is drawn.
    pub(crate) fn has_drawn(&self) -> bool {
        self.kept().drawn > 0
    }

    /// Every byte was hashed after the last key was drawn, and is as sealed: they may be used, if nobody
    /// doubted that since the first was drawn.
    pub(crate) fn vouch(&self) {
        let mut kept = self.kept();
        if kept.doubts == self.doubts.load(Ordering::Acquire) && kept.drawn == kept.spares.len() {
            kept.vouched = true;
            self.count(&kept);
        }
    }

    /// Uses the next key, whatever comes of that: it is used up before it is used, and wiped afterwards. None where none is
    /// left. Allocates nothing.
    pub(crate) fn with_next<T>(&self, use_up: impl FnOnce(&Spare) -> T) -> Option<T> {
        let mut kept = self.kept();
        if !kept.vouched {
            return None;
        }
        let next = kept.used;
        kept.used = next.saturating_add(1).min(kept.spares.len());
        self.count(&kept);
        let spare = kept.spares.get_mut(next)?;
        let outcome = use_up(spare);
        spare.wipe();
        Some(outcome)
    }

    fn count(&self, kept: &Kept) {
        let left = if kept.vouched { kept.spares.len().saturating_sub(kept.used) } else { 0 };
        self.left.store(u32::try_from(left).unwrap_or(u32::MAX), Ordering::Release);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of the tag, out of both keys.
pub(crate) fn tag_key(keys: &[u8]) -> Zeroizing<[u8; TAG_KEY_BYTES]> {
    let mut key = Zeroizing::new([0; TAG_KEY_BYTES]);
    if let Some(bytes) = keys.get(WORDS_BYTES..KEYS_BYTES) {
        key.copy_from_slice(bytes);
    }
    key
}

/// The fingerprint of [`ZEROS`] zero bytes, from the definition: what a device has to answer before it is believed.
pub(crate) fn of_zeros(key: &FingerprintKey) -> Fingerprint {
    let mut keys = Zeroizing::new([0; KEYS_BYTES]);
    key.expand(&mut keys);
    let word = |at: usize| {
        let word = keys.get(at.saturating_mul(4)..).and_then(|bytes| bytes.first_chunk());
        u64::from(u32::from_le_bytes(word.copied().unwrap_or_default()))
    };
    let mut hasher = blake3::Hasher::new_keyed(&tag_key(&*keys));
    // One piece in the first of 256 tiles.
    for at in [0, 2, 4, 6] {
        let [a, b, c, d] = [word(at), word(at | 1), word(at.saturating_add(2)), word(at.saturating_add(3))];
        let sum = a.wrapping_mul(b).wrapping_add(c.wrapping_mul(d));
        hasher.update(&sum.to_le_bytes());
    }
    hasher.update(&[0; 255 * 32]).update(&ZEROS.to_le_bytes());
    Fingerprint(*hasher.finalize().as_bytes())
}

/// How many zeros: one piece.
pub(crate) const ZEROS: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws so many keys, and says what they are.
    fn draw(spares: &Spares, count: u16) -> Vec<[u8; 32]> {
        let mut keys = Vec::new();
        let mut take = |key: &FingerprintKey| {
            keys.push(key.0);
            Ok::<_, ()>(Some(Fingerprint([keys.len() as u8; 32])))
        };
        while spares.draw(count, &mut take).unwrap() {
            assert_eq!((spares.left(), spares.with_next(|_| ()).is_none()), (0, true), "nothing vouched for it yet");
        }
        keys
    }

    #[test]
    fn a_key_is_used_once_also_where_its_use_panics() {
        let spares = Spares::default();
        let keys = draw(&spares, 3);
        spares.vouch();
        let used = || spares.with_next(|spare| (spare.key.0, spare.expected.0[0]));
        assert_eq!((spares.left(), used()), (3, Some((keys[0], 1))));
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| spares.with_next(|_| panic!("a defect"))));
        assert!(panicked.is_err());
        assert_eq!((spares.left(), used()), (1, Some((keys[2], 3))));
        assert_eq!((spares.left(), used()), (0, None));
        let more = draw(&spares, 1);
        spares.vouch();
        assert!(!keys.contains(&more[0]) && keys[0] != keys[1]);
        assert_eq!((spares.left(), used()), (1, Some((more[0], 1))));
        let kept = spares.kept();
        assert!(kept.spares.iter().all(|spare| spare.key.0 == [0; 32] && spare.expected.0 == [0; 32]), "wiped");
    }

    /// A fingerprint of what was damaged must not be vouched for by a hash of what was repaired.
    #[test]
    fn what_was_drawn_before_a_doubt_is_never_used() {
        let spares = Spares::default();
        let old = draw(&spares, 2);
        spares.doubt();
        spares.vouch();
        assert_eq!(spares.left(), 0);
        let new = draw(&spares, 2);
        assert!(new.len() == 2 && new.iter().all(|key| !old.contains(key)), "from the start");
        // Half of them are none.
        let other = Spares::default();
        let take = |_: &FingerprintKey| Ok::<_, ()>(Some(Fingerprint([1; 32])));
        assert!(other.draw(2, take).unwrap());
        other.vouch();
        assert_eq!(other.left(), 0);
        // A key whose fingerprint was not to be had is as good as seen.
        assert!(matches!(other.draw(2, |_| Err(())), Err(NotDrawn::Taken(()))));
        assert_eq!(other.kept().spares[1].key.0, [0; 32]);
        spares.vouch();
        // Those that are vouched for serve on: the sealed bytes are there again, or they tell.
        spares.doubt();
        assert_eq!(spares.with_next(|spare| spare.key.0), Some(new[0]));
    }

    #[test]
    fn keys_follow_from_the_secret_and_from_nothing_else() {
        let expand = |secret| {
            let mut keys = [0; KEYS_BYTES];
            FingerprintKey::from_secret(secret).expand(&mut keys);
            keys
        };
        assert_eq!(expand([7; 32]), expand([7; 32]));
        let (one, other) = (expand([7; 32]), expand([8; 32]));
        let same = one.iter().zip(&other).filter(|(one, other)| one == other).count();
        assert!(same < 64, "{same} of 4152 bytes are equal, and 16 would be by chance");
        assert_eq!(tag_key(&one)[..], one[WORDS_BYTES..]);
        let said = format!("{:?} {:?}", FingerprintKey::from_secret([7; 32]), Fingerprint::from_bytes([7; 32]));
        assert_eq!(said, "FingerprintKey Fingerprint");
    }
}
