//! Shard ids: validated once, in one pass, without allocating.

use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayString;

/// Most characters in a shard id.
pub const MAX_SHARD_ID: usize = 256;

/// The name of a shard: 1 to 256 of `A-Z a-z 0-9 _ -`. Unique among a manager's resident shards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(ArrayString<MAX_SHARD_ID>);

/// The text is not a shard id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardIdError {
    /// Nothing there.
    #[error("a shard id has at least one character; give the shard a name")]
    Empty,
    /// Too long.
    #[error("a shard id has at most {MAX_SHARD_ID} characters, this one has {length}; shorten it")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A character with which paths are climbed: `/`, `\`, `.` or NUL.
    #[error("a shard id is no path: {character:?} at position {position} is refused; use letters, digits, '_' or '-'")]
    PathTraversal {
        /// Where, counted in bytes from 0.
        position: usize,
        /// The character.
        character: char,
    },
    /// Any other character outside the set.
    #[error("a shard id holds only letters, digits, '_' and '-': {character:?} at position {position} is refused")]
    Character {
        /// Where, counted in bytes from 0.
        position: usize,
        /// The character.
        character: char,
    },
}

impl ShardId {
    /// Checks a text and keeps it. Allocates nothing.
    ///
    /// Two layers, one pass: the identifier rule decides whether a character is allowed; for those that are not, the
    /// error tells an attempt at path traversal from a slip.
    ///
    /// # Errors
    /// The first character that is refused, or the length.
    pub fn new(text: &str) -> Result<Self, ShardIdError> {
        if text.is_empty() {
            return Err(ShardIdError::Empty);
        }
        for (position, character) in text.char_indices() {
            match character {
                'A'..='Z' | 'a'..='z' | '0'..='9' | '_' | '-' => {}
                '/' | '\\' | '.' | '\0' => return Err(ShardIdError::PathTraversal { position, character }),
                _ => return Err(ShardIdError::Character { position, character }),
            }
        }
        ArrayString::from(text).map(Self).map_err(|_| ShardIdError::TooLong { length: text.len() })
    }

    /// An id made from any text, for a file's name say: every other character becomes `-`, and the end is cut off.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        let mut id = ArrayString::new();
        for character in name.chars() {
            let allowed = character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
            if id.try_push(if allowed { character } else { '-' }).is_err() {
                break;
            }
        }
        if id.is_empty() {
            id.push_str("shard");
        }
        Self(id)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for ShardId {
    type Err = ShardIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl serde::Serialize for ShardId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identifier_rule_holds_at_its_edges() {
        let longest = "a".repeat(MAX_SHARD_ID);
        for good in ["a", "Z", "0", "_", "-", "llama-3_8B", &longest] {
            assert_eq!(ShardId::new(good).unwrap().as_str(), good);
        }
        assert_eq!(ShardId::new(""), Err(ShardIdError::Empty));
        let length = MAX_SHARD_ID.saturating_add(1);
        assert_eq!(ShardId::new(&"a".repeat(length)), Err(ShardIdError::TooLong { length }));
        for (bad, position, character) in [("a b", 1, ' '), ("é", 0, 'é'), ("ab\n", 2, '\n'), ("x:y", 1, ':')] {
            assert_eq!(ShardId::new(bad), Err(ShardIdError::Character { position, character }));
        }
    }

    #[test]
    fn path_traversal_is_called_by_its_name() {
        let cases = [("../x", 0, '.'), ("a/b", 1, '/'), ("a\\b", 1, '\\'), ("a\0", 1, '\0'), ("a..b", 1, '.')];
        for (bad, position, character) in cases {
            assert_eq!(ShardId::new(bad), Err(ShardIdError::PathTraversal { position, character }), "{bad:?}");
        }
    }

    #[test]
    fn a_name_made_from_any_text_is_valid() {
        for name in ["", "../../etc/passwd", "modèle.safetensors", &"long.".repeat(200)] {
            let id = ShardId::from_name(name);
            assert_eq!(ShardId::new(id.as_str()), Ok(id));
        }
        assert_eq!(ShardId::from_name("model.safetensors").as_str(), "model-safetensors");
    }
}
