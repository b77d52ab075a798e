//! The keyed fingerprint: a check of a whole region that costs less than hashing it, for frequent re-checks.
//!
//! `docs/kernels.md`, section 3, defines it, and says what it guarantees and what not. In short: two different contents have
//! the same fingerprint with a probability of at most 2^-128, as long as whoever chose them had not seen the key. So each key
//! is drawn by chance, its fingerprint is taken while the content is trusted, both stay on the host, and it is used once.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
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
    /// A key that nobody has seen.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut key = Self([0; 32]);
        let got = rustix::rand::getrandom(&mut key.0, rustix::rand::GetRandomFlags::empty())?;
        if got == key.0.len() { Ok(key) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
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

/// A key that is still to be used, and the fingerprint that a region had under it while it was trusted.
pub(crate) struct Spare {
    pub(crate) key: FingerprintKey,
    pub(crate) expected: Fingerprint,
}

/// The keys that a shard still has. Each is used once.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Mutex<Kept>,
    /// The same as what `kept` holds; read without waiting for a check that is under way.
    left: AtomicU32,
}

#[derive(Default)]
struct Kept {
    spares: Box<[Spare]>,
    /// How many of them were used.
    used: usize,
}

impl Spares {
    pub(crate) fn new(spares: Vec<Spare>) -> Self {
        let kept = Self::default();
        kept.replace(spares);
        kept
    }

    /// Takes these instead of what was left.
    pub(crate) fn replace(&self, spares: Vec<Spare>) {
        let mut kept = self.kept();
        *kept = Kept { spares: spares.into_boxed_slice(), used: 0 };
        self.count(&kept);
    }

    /// How many keys are left.
    pub(crate) fn left(&self) -> u32 {
        self.left.load(Ordering::Acquire)
    }

    /// Uses the next key, whatever comes of that: it is used up before it is used, and wiped afterwards. None where none is
    /// left. Allocates nothing.
    pub(crate) fn with_next<T>(&self, use_up: impl FnOnce(&Spare) -> T) -> Option<T> {
        let mut kept = self.kept();
        let next = kept.used;
        kept.used = next.saturating_add(1).min(kept.spares.len());
        self.count(&kept);
        let spare = kept.spares.get_mut(next)?;
        let outcome = use_up(spare);
        spare.key.0.zeroize();
        spare.expected.0.zeroize();
        Some(outcome)
    }

    fn count(&self, kept: &Kept) {
        let left = kept.spares.len().saturating_sub(kept.used);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spare(number: u8) -> Spare {
        Spare { key: FingerprintKey::from_secret([number; 32]), expected: Fingerprint::from_bytes([number; 32]) }
    }

    #[test]
    fn a_key_is_used_once_also_where_its_use_panics() {
        let spares = Spares::new((1..=3).map(spare).collect());
        assert_eq!((spares.left(), spares.with_next(|spare| spare.key.0[0])), (3, Some(1)));
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| spares.with_next(|_| panic!("a defect"))));
        assert!(panicked.is_err());
        assert_eq!((spares.left(), spares.with_next(|spare| spare.key.0[0])), (1, Some(3)));
        assert_eq!((spares.left(), spares.with_next(|spare| spare.key.0[0])), (0, None));
        spares.replace(vec![spare(9)]);
        assert_eq!((spares.left(), spares.with_next(|spare| spare.key.0[0])), (1, Some(9)));
        let kept = spares.kept();
        assert!(kept.spares.iter().all(|spare| spare.key.0 == [0; 32] && spare.expected.0 == [0; 32]), "wiped");
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
        assert_ne!(FingerprintKey::random().unwrap().0, FingerprintKey::random().unwrap().0);
    }
}
