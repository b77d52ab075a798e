//! The publisher's key: ECDSA on the curves P-256 and P-384. The one place that knows of `p256` and `p384`.

use std::fmt;

use p256::ecdsa::signature::Verifier as _;
use sha2::{Digest as _, Sha256};

use crate::attest::KeyId;
use crate::pem;

/// What stands before the 65 bytes of a P-256 point: RFC 5480, as SubjectPublicKeyInfo, uncompressed.
const P256_DER: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The same before the 97 bytes of a P-384 point.
const P384_DER: [u8; 23] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22, 0x03, 0x62, 0x00,
];

/// The text is no key that is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no public key on P-256 or P-384 in PEM; a key on one of them is made with openssl ecparam -name prime256v1 -genkey \
     -noout -out KEY (or secp384r1), and its public key with openssl ec -in KEY -pubout"
)]
pub struct SignerKeyError;

#[derive(Clone)]
enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

/// A publisher's public key.
#[derive(Clone)]
pub struct SignerKey {
    key: Key,
    id: KeyId,
}

impl SignerKey {
    /// Reads a public key in PEM: SubjectPublicKeyInfo, as OpenSSL writes it.
    ///
    /// # Errors
    /// [`SignerKeyError`]: no such text, another kind of key, or no point of its curve.
    pub fn from_pem(text: &str) -> Result<Self, SignerKeyError> {
        let der = pem::decode("PUBLIC KEY", text).ok_or(SignerKeyError)?;
        let key = if let Some(point) = der.strip_prefix(&P256_DER) {
            p256::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Key::P256)
        } else if let Some(point) = der.strip_prefix(&P384_DER) {
            p384::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Key::P384)
        } else {
            return Err(SignerKeyError);
        };
        // As model-signing counts: over the text, its newline included.
        let id = KeyId(Sha256::digest(pem::encode("PUBLIC KEY", &der).as_bytes()).into());
        key.map(|key| Self { key, id }).map_err(|_| SignerKeyError)
    }

    /// Which key it is: SHA-256 of its PEM text, as OpenSSF Model Signing names keys.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Whether a signature in DER is this key's for a message: with SHA-256 on P-256, with SHA-384 on P-384.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::P256(key) => {
                let signature = p256::ecdsa::Signature::from_der(signature);
                signature.is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
            Key::P384(key) => {
                let signature = p384::ecdsa::Signature::from_der(signature);
                signature.is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
        }
    }
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let curve = match self.key {
            Key::P256(_) => "P-256",
            Key::P384(_) => "P-384",
        };
        write!(f, "SignerKey({curve}, {})", self.id)
    }
}
