//! TLS, once for the whole process.

use std::sync::Once;

/// Makes ring the implementation of cryptography for TLS, unless the program has chosen another one. The HTTP client
/// takes it from there and refuses to work without.
pub(crate) fn ready() {
    static READY: Once = Once::new();
    READY.call_once(|| {
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
