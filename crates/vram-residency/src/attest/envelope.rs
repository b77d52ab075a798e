//! The envelope: DSSE, in one canonical form.
//!
//! ```text
//! {"payload":BASE64,"payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":HEX,"sig":BASE64}]} newline
//! ```
//!
//! What is signed is DSSE's pre-authentication encoding of payload type and payload. JSON and base64 can write one
//! thing in many ways; a text that is not exactly the one above is refused, so no byte of it can be changed unseen.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::key::{AttestKey, KeyId, PublicKey};

/// The payload's media type.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Most bytes of an envelope that is read.
pub const MAX_ENVELOPE: usize = 8 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Text {
    payload: String,
    payload_type: String,
    signatures: Vec<SignatureText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureText {
    keyid: String,
    sig: String,
}

/// A payload and a signature that was not checked yet.
#[derive(Debug)]
pub struct Envelope {
    payload: Vec<u8>,
    key_id: KeyId,
    signature: [u8; 64],
}

/// DSSE's pre-authentication encoding: what is signed.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// Signs a payload.
    #[must_use]
    pub fn sign(payload: Vec<u8>, key: &AttestKey) -> Self {
        let signature = key.sign(&pae(PAYLOAD_TYPE, &payload));
        Self { payload, key_id: key.public().id(), signature }
    }

    /// The canonical text, its newline included.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = Text {
            payload: BASE64_STANDARD.encode(&self.payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![SignatureText {
                keyid: self.key_id.to_string(),
                sig: BASE64_STANDARD.encode(self.signature),
            }],
        };
        // Strings into memory: this cannot fail.
        serde_json::to_string(&text).unwrap_or_default() + "\n"
    }

    /// Reads the canonical text, and nothing else.
    ///
    /// # Errors
    /// The first thing that is not as [`Envelope::to_text`] writes it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(Refusal::TooLong { bytes: bytes.len(), limit: MAX_ENVELOPE });
        }
        let malformed = |reason: &str| Refusal::Envelope { reason: reason.into() };
        let text: Text = serde_json::from_slice(bytes).map_err(|error| malformed(&error.to_string()))?;
        if text.payload_type != PAYLOAD_TYPE {
            return Err(malformed("its payload is of another type"));
        }
        let [signature] = text.signatures.as_slice() else {
            return Err(Refusal::Signatures { count: text.signatures.len() });
        };
        let key_id =
            super::hex::array(&signature.keyid).map(KeyId).ok_or_else(|| malformed("its keyid is no key's"))?;
        let decoded = |text: &str| BASE64_STANDARD.decode(text).ok();
        let payload = decoded(&text.payload).ok_or_else(|| malformed("its payload is no base64"))?;
        let signature = decoded(&signature.sig).and_then(|bytes| bytes.try_into().ok());
        let signature = signature.ok_or_else(|| malformed("its signature is not 64 bytes in base64"))?;
        let envelope = Self { payload, key_id, signature };
        if envelope.to_text().as_bytes() == bytes { Ok(envelope) } else { Err(Refusal::NotCanonical) }
    }

    /// The payload as it came, whoever wrote it: to show what the own daemon just answered, and to believe nothing.
    #[must_use]
    pub fn unverified(&self) -> &[u8] {
        &self.payload
    }

    /// The key that is said to have signed.
    #[must_use]
    pub const fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The payload, once one of the keys has been found to have signed it.
    ///
    /// # Errors
    /// [`Refusal::UnknownKey`], [`Refusal::Signature`].
    pub fn verified(&self, keys: &[PublicKey]) -> Result<&[u8], Refusal> {
        let key_id = self.key_id;
        let key = keys.iter().find(|key| key.id() == key_id).ok_or(Refusal::UnknownKey { key_id })?;
        if key.verifies(&pae(PAYLOAD_TYPE, &self.payload), &self.signature) {
            Ok(&self.payload)
        } else {
            Err(Refusal::Signature { key_id })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_one_of_the_dsse_specification() {
        // The example in DSSE's protocol.md, section "Test Vectors".
        let encoded = pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    }

    #[test]
    fn only_the_canonical_text_is_read() {
        let key = AttestKey::of(&[7; 32]).unwrap();
        let text = Envelope::sign(b"{}".to_vec(), &key).to_text();
        let read = |text: &str| Envelope::parse(text.as_bytes());
        let keys = [key.public().clone()];
        assert_eq!(read(&text).unwrap().verified(&keys).unwrap(), b"{}");
        let canonical = text.trim_end();
        let (kid, sig) = (key.public().id().to_string(), canonical.split("\"sig\":\"").nth(1).unwrap());
        let sig = sig.split('"').next().unwrap();
        let several = format!("{{\"keyid\":\"{kid}\",\"sig\":\"{sig}\"}}");
        for other in [
            canonical.to_owned(),
            format!("{text}\n"),
            format!(" {text}"),
            text.replace(":", ": "),
            text.replace("e30=", "e30"),
            text.replace("e30=", "e31="),
            text.replace("payloadType", "payload\\u0054ype"),
            text.replace("{\"payload\"", "{\"payload\":\"e30=\",\"payload\""),
            text.replace("{\"payload\"", "{\"extra\":1,\"payload\""),
            text.replace("\"sig\"", "\"cert\":\"\",\"sig\""),
            text.replace(&several, ""),
            text.replace(&several, &format!("{several},{several}")),
            text.replace(&kid, &kid.to_uppercase()),
            text.replace("in-toto", "in-tato"),
            text.clone() + &text,
        ] {
            assert!(read(&other).is_err(), "{other}");
        }
        assert!(matches!(
            read(&text.replace(&several, &format!("{several},{several}"))),
            Err(Refusal::Signatures { count: 2 })
        ));
        let other = AttestKey::of(&[8; 32]).unwrap();
        assert!(matches!(read(&text).unwrap().verified(&[other.public().clone()]), Err(Refusal::UnknownKey { .. })));
    }
}
