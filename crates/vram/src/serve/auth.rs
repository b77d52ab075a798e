//! The bearer token of HTTP requests that cost work.

use std::path::Path;

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::exit::Failure;
use crate::state;

/// Characters of a token, at least.
const SHORTEST: usize = 32;
/// How to make one: 32 characters that may stand in a header.
const MAKE_TOKEN: &str = "head -c 24 /dev/urandom | base64 > FILE; chmod 600 FILE";

/// What is said of a key, said of a token.
fn retold(message: &str) -> String {
    message.replacen("the seal key", "the token", 1).replace(state::MAKE_KEY, MAKE_TOKEN)
}

/// A secret that requests must show. Never printed.
pub(super) struct Token(Zeroizing<Vec<u8>>);

impl Token {
    /// Reads it from a file that nobody else can read; a line end at its end does not count.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            let shown = path.display();
            Failure::new("token", format!("the token {shown} cannot be opened: {error}; make it with: {MAKE_TOKEN}"))
        };
        let file = state::open_key(path).map_err(cannot)?;
        let mut secret =
            state::read_secret(path, &file).map_err(|failure| Failure::new("token", retold(&failure.message)))?;
        while secret.last().is_some_and(u8::is_ascii_whitespace) {
            secret.pop();
        }
        if secret.len() < SHORTEST || !secret.iter().all(u8::is_ascii_graphic) {
            let shown = path.display();
            return Err(Failure::new(
                "token",
                format!(
                    "the token {shown} must have {SHORTEST} or more printable characters and no blanks; make it with: {MAKE_TOKEN}"
                ),
            ));
        }
        Ok(Self(secret))
    }

    /// Whether a request shows it, and nothing else. Takes as long for any token of the same length.
    pub(super) fn is_shown(&self, headers: &HeaderMap) -> bool {
        let mut all = headers.get_all(header::AUTHORIZATION).iter();
        // Of two, who stands between may have looked at the other one.
        let only = all.next().filter(|_| all.next().is_none());
        let shown = only.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| bool::from(shown.ct_eq(&self.0)))
    }
}
