//! stub
mod backoff;
mod http;
mod probe;
mod put;
mod store;
mod tls;
pub use store::*;
pub use probe::*;
