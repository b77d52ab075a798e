//! Checkpoints: what a log commits to when it signs.

use std::fmt;

use super::note::{self, NoteError, SignedNote, VerifierKey};
use super::tree::{Hash, MAX_SIZE};

/// The state of a log: its origin, how many entries it has, the root hash over them. Its text has one line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name, the same as its key's.
    pub origin: String,
    /// Entries.
    pub size: u64,
    /// The root hash of the tree of so many entries.
    pub root: Hash,
}

/// Why a text is no checkpoint, or not one to be trusted.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The text is no checkpoint.
    #[error("this is no checkpoint: three lines are expected, origin, size and root hash; take another copy")]
    Malformed,
    /// The note around it is not accepted.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// It belongs to another log.
    #[error("the checkpoint is of the log {found:?} and not of {expected:?}: compare the right ones")]
    Origin {
        /// The origin found.
        found: String,
        /// The origin that was expected.
        expected: String,
    },
}

impl Checkpoint {
    /// Reads the text of a checkpoint. Extension lines are refused: this log writes none, and nobody could audit them.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`] for anything that is not written exactly as the text of a checkpoint.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let parsed = || {
            let mut lines = text.strip_suffix('\n')?.split('\n');
            let (origin, digits, root) = (lines.next()?, lines.next()?, lines.next()?);
            let size: u64 = digits.parse().ok().filter(|&size| size <= MAX_SIZE)?;
            let plain = lines.next().is_none() && note::check_name(origin).is_ok() && size.to_string() == digits;
            let root = Hash::parse(root)?;
            (plain && (size > 0 || root == Hash::EMPTY_TREE)).then(|| Self { origin: origin.to_owned(), size, root })
        };
        parsed().ok_or(CheckpointError::Malformed)
    }

    /// Reads a signed checkpoint and checks that one of these log keys signed it, and that the key bears the log's name.
    ///
    /// # Errors
    /// [`CheckpointError`]: not readable, not signed by such a key, or a key of another log.
    pub fn verify(bytes: &[u8], log_keys: &[VerifierKey]) -> Result<(Self, SignedNote), CheckpointError> {
        let note = SignedNote::parse(bytes)?;
        let checkpoint = Self::parse(note.text())?;
        let verified = note.verify(log_keys)?;
        if let Some(other) = verified.iter().find(|key| key.name != checkpoint.origin) {
            return Err(CheckpointError::Origin { found: checkpoint.origin, expected: other.name.clone() });
        }
        Ok((checkpoint, note))
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checkpoint { origin, size, root } = self;
        write!(f, "{origin}\n{size}\n{root}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::note::SigningKey;
    use super::*;
    use proptest::prelude::*;

    const ROOT: &str = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";

    #[test]
    fn the_text_of_the_specification_is_read_and_others_are_not() {
        let text = format!("example.com/behind-the-sofa\n20852163\n{ROOT}\n");
        let checkpoint = Checkpoint::parse(&text).unwrap();
        assert_eq!((checkpoint.size, checkpoint.to_string()), (20_852_163, text.clone()));
        for other in [
            String::new(),
            text.trim_end().to_owned(),
            format!("{text}extension\n"),
            format!("{text}\n"),
            text.replace("20852163", "020852163"),
            text.replace("20852163", "+20852163"),
            text.replace("20852163", "-1"),
            text.replace("20852163", "18446744073709551616"),
            text.replace("20852163", "1099511627777"),
            text.replace("20852163", "0"),
            text.replace(ROOT, &ROOT[1..]),
            text.replace("q2I=", "q2J="),
            text.replace("example.com/behind-the-sofa", ""),
            text.replace("behind-the", "behind the"),
        ] {
            assert_eq!(Checkpoint::parse(&other), Err(CheckpointError::Malformed), "{other:?}");
        }
    }

    #[test]
    fn a_key_of_another_name_does_not_speak_for_the_log() {
        let key = SigningKey::generate("one").unwrap();
        let checkpoint = Checkpoint { origin: "two".into(), size: 0, root: Hash::EMPTY_TREE };
        let note = SignedNote::sign(&checkpoint.to_string(), &[&key]).to_bytes();
        let verified = Checkpoint::verify(&note, &[key.verifier().clone()]);
        assert_eq!(verified, Err(CheckpointError::Origin { found: "two".into(), expected: "one".into() }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_a_checkpoint_or_none(text in "([ -~]{0,12}\n){0,5}", size in 0..=MAX_SIZE, root in any::<[u8; 32]>()) {
            if let Ok(checkpoint) = Checkpoint::parse(&text) {
                prop_assert_eq!(checkpoint.to_string(), text);
            }
            let root = if size == 0 { Hash::EMPTY_TREE } else { Hash(root) };
            let checkpoint = Checkpoint { origin: "a.b/c".into(), size, root };
            prop_assert_eq!(Checkpoint::parse(&checkpoint.to_string()), Ok(checkpoint));
        }
    }
}
