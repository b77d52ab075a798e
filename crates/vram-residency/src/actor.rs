//! Who ordered something, without saying who: a keyed commitment in place of a name or a number.
//!
//! A log that nobody can shorten must not hold what somebody may have the right to have erased. So it holds
//! HMAC-SHA256 of the identifier under a key that lies outside of the log. Whoever has the key can look for a person's
//! records; once the key is destroyed, the records stay verifiable and say nothing of anybody.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;

use crate::seal::{MAX_SECRET, MIN_SECRET};

/// What the committed text starts with, so that the key's other uses, if any, cannot be mixed up with this one.
const DOMAIN: &[u8] = b"vram-residency/subject/v1\0";

/// The key under which identifiers become commitments. Never printed; wiped when dropped.
pub struct SubjectKey(Hmac<Sha256>);

impl SubjectKey {
    /// A key of 32 to 1024 random bytes; none where there are fewer or more.
    #[must_use]
    pub fn new(secret: &[u8]) -> Option<Self> {
        if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
            return None;
        }
        Hmac::new_from_slice(secret).ok().map(Self)
    }

    /// The commitment to a user of this machine.
    #[must_use]
    pub fn user(&self, uid: u32) -> Actor {
        let mut mac = self.0.clone();
        mac.update(DOMAIN);
        mac.update(format!("uid:{uid}").as_bytes());
        Actor(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectKey(..)")
    }
}

/// Somebody, as the log knows him: `hmac-sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Actor([u8; 32]);

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hmac-sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Actor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

thread_local! {
    static ACTING: Cell<Option<Actor>> = const { Cell::new(None) };
}

/// While this lives, every event that this thread emits carries the actor.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Acting {
    before: Option<Actor>,
    /// It is about one thread.
    _here: PhantomData<*const ()>,
}

impl Acting {
    /// From now on this thread works for `actor`, or for nobody in particular.
    pub fn begin(actor: Option<Actor>) -> Self {
        let before = ACTING.try_with(|acting| acting.replace(actor)).ok().flatten();
        Self { before, _here: PhantomData }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let _ = ACTING.try_with(|acting| acting.set(self.before));
    }
}

/// For whom this thread works: to be handed on to threads that work for it.
#[must_use]
pub fn acting() -> Option<Actor> {
    ACTING.try_with(Cell::get).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commitment_is_what_any_hmac_program_computes() {
        let key = SubjectKey::new(&[7; 32]).unwrap();
        // python3 -c "import hmac; print(hmac.new(b'\7'*32, b'vram-residency/subject/v1\0uid:1000', 'sha256').hexdigest())"
        let expected = "hmac-sha256:4c2577d42b9fbb62f6971cfcf3b59fe0ba027d88f6246261e35e9e26ba1f2d24";
        assert_eq!(key.user(1000).to_string(), expected);
        assert_ne!(key.user(1001), key.user(1000));
        assert_ne!(SubjectKey::new(&[8; 32]).unwrap().user(1000), key.user(1000));
        assert!(SubjectKey::new(&[7; 31]).is_none() && SubjectKey::new(&[7; 1025]).is_none());
        assert_eq!(format!("{key:?}"), "SubjectKey(..)");
    }

    #[test]
    fn who_is_acting_ends_with_the_order_and_stays_in_its_thread() {
        let key = SubjectKey::new(&[7; 32]).unwrap();
        let (one, two) = (key.user(1), key.user(2));
        assert_eq!(acting(), None);
        let outer = Acting::begin(Some(one));
        {
            let _inner = Acting::begin(Some(two));
            assert_eq!(acting(), Some(two));
            assert_eq!(std::thread::spawn(acting).join().unwrap(), None);
        }
        assert_eq!(acting(), Some(one));
        drop(outer);
        assert_eq!(acting(), None);
    }
}
