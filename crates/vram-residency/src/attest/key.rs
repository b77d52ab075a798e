//! The key that signs attestations, and the one that checks them. The one place of this module that knows of `ed25519-dalek`.
//!
//! Verification is strict: keys of small order are refused, and so is a signature that another reading of the standard
//! would accept, so that nobody can turn one valid signature into another.

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::digest::fmt_hex;
use crate::pem;

/// What stands before the 32 bytes of a public key: RFC 8410, as SubjectPublicKeyInfo.
const PUBLIC_DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands before the 32 bytes of a private key: RFC 8410, as PKCS #8.
const PRIVATE_DER: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

const PUBLIC: &str = "PUBLIC KEY";
const PRIVATE: &str = "PRIVATE KEY";

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is no private key.
    #[error("this is no private Ed25519 key in PEM (PKCS #8); make one with `vram attest --keygen`")]
    Private,
    /// The text is no public key.
    #[error("this is no public Ed25519 key; it is written ed25519:BASE64, or in PEM, as `vram attest --keygen` does")]
    Public,
    /// Anybody can make signatures that such a key accepts.
    #[error("this key is weak, signatures under it prove nothing; make another")]
    Weak,
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for a key; try again later")]
    Random,
}

/// Which key it is: SHA-256 of its SubjectPublicKeyInfo. Shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that signs attestations. Wiped when dropped; its debug text does not show it.
pub struct AttestKey {
    key: SigningKey,
    public: PublicKey,
}

impl AttestKey {
    /// Draws a new key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        let drawn = rustix::rand::getrandom(&mut *seed, rustix::rand::GetRandomFlags::empty());
        if drawn.ok() != Some(seed.len()) {
            return Err(KeyError::Random);
        }
        Self::of(&seed)
    }

    /// The key with this seed.
    ///
    /// # Errors
    /// [`KeyError::Weak`], which no seed is known to give.
    pub fn of(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let key = SigningKey::from_bytes(seed);
        let public = PublicKey::of(key.verifying_key())?;
        Ok(Self { key, public })
    }

    /// Reads a private key in PEM: PKCS #8, unencrypted, as [`AttestKey::to_pem`] writes it.
    ///
    /// # Errors
    /// [`KeyError::Private`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = pem::decode(PRIVATE, text).ok_or(KeyError::Private)?;
        let seed = der.strip_prefix(&PRIVATE_DER).and_then(|seed| <&[u8; 32]>::try_from(seed).ok());
        Self::of(seed.ok_or(KeyError::Private)?)
    }

    /// The private key in PEM. Secret: whoever has it can attest in this worker's name.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut der = Zeroizing::new(Vec::with_capacity(48));
        der.extend_from_slice(&PRIVATE_DER);
        der.extend_from_slice(self.key.as_bytes());
        pem::encode(PRIVATE, &der)
    }

    /// The key that checks what this one signs.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for AttestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// A key that checks attestations. Its text is `ed25519:` and the 32 bytes in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
}

impl PublicKey {
    fn of(key: VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self { key }) }
    }

    fn of_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes = bytes.try_into().map_err(|_| KeyError::Public)?;
        Self::of(VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Public)?)
    }

    fn to_der(&self) -> Vec<u8> {
        [&PUBLIC_DER[..], self.key.as_bytes()].concat()
    }

    /// Reads a public key in PEM: SubjectPublicKeyInfo, as OpenSSL writes it.
    ///
    /// # Errors
    /// [`KeyError::Public`], [`KeyError::Weak`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = pem::decode(PUBLIC, text).ok_or(KeyError::Public)?;
        Self::of_bytes(der.strip_prefix(&PUBLIC_DER).ok_or(KeyError::Public)?)
    }

    /// The key in PEM, for other tools.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(PUBLIC, &self.to_der()).as_str().to_owned()
    }

    /// Which key it is.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId(Sha256::digest(self.to_der()).into())
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.key.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", BASE64_STANDARD.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let Some(base64) = text.trim().strip_prefix("ed25519:") else { return Self::from_pem(text) };
        Self::of_bytes(&BASE64_STANDARD.decode(base64).map_err(|_| KeyError::Public)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_and_the_text_is_what_openssl_writes() {
        let key = AttestKey::of(&[7; 32]).unwrap();
        let again = AttestKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse(), Ok(key.public().clone()));
        assert_eq!(key.public().to_pem().parse(), Ok(key.public().clone()));
        // RFC 8410, section 10.1 and 10.3.
        let rfc = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = AttestKey::from_pem(rfc).unwrap();
        assert_eq!((key.to_pem().as_str(), key.public().to_pem().as_str()), (rfc, public));
        assert!(!format!("{key:?}").contains("1O5y"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let weak = format!("ed25519:{}", BASE64_STANDARD.encode([0; 32]));
        assert_eq!(weak.parse::<PublicKey>(), Err(KeyError::Weak));
        for text in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "-----BEGIN PUBLIC KEY-----"] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Public), "{text}");
        }
        assert!(AttestKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----").is_err());
    }
}
