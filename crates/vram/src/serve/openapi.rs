//! The description of what is answered. A test holds it against the running daemon.

/// OpenAPI 3.1.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");
