//! OpenSSF Model Signing bundles: Sigstore bundle 0.3 › DSSE › in-toto Statement 1 › `model_signing/signature/v1.0`.
//!
//! Only what a key signed is read; certificates and transparency logs are not understood, and refused. The bundle's JSON is
//! others' and has no canonical form, so it is read strictly: no unknown field outside the predicate (whose own
//! specification says that further ones do not matter), no field twice, no list for an object, no escaped character, nothing
//! behind it. What is left (white space, the order of fields, empty fields that are left out, the second of the two values
//! that every ECDSA signature has) changes nothing of what is signed, and the manifest's digest, which is on record.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest as _, Sha256};

use super::{Algorithm, Form, Manifest, ManifestError, SignerKey, add};
use crate::attest::KeyId;
use crate::attest::envelope::{PAYLOAD_TYPE, pae};
use crate::attest::hex;
use crate::attest::statement::STATEMENT_TYPE;
use crate::digest::{Digest, Expected};
use crate::json::Object;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Object<Material>,
    dsse_envelope: Object<Envelope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Material {
    public_key: Object<PublicKey>,
    #[serde(default)]
    tlog_entries: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicKey {
    hint: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Object<Signature>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Object<Subject>>,
    predicate_type: String,
    predicate: Object<Predicate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    #[serde(rename = "name")]
    _name: String,
    digest: Object<SubjectDigest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Object<Serialization>,
    resources: Vec<Object<Resource>>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    #[serde(default)]
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

const fn wrong(reason: &'static str) -> ManifestError {
    ManifestError::Bundle { reason }
}

/// An object. What is wrong with its JSON may be told in words that hold some of it.
fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, ManifestError> {
    let object: Result<Object<T>, _> = serde_json::from_slice(json);
    object.map(|Object(read)| read).map_err(|error| ManifestError::Json {
        reason: error.to_string().into(),
        line: error.line(),
        column: error.column(),
    })
}

/// Checks the signature first; only what it covers is looked into.
pub(super) fn parse(bytes: &[u8], key: &SignerKey) -> Result<Manifest, ManifestError> {
    // Nothing in it needs one, and with them each letter could be written in several ways.
    if bytes.contains(&b'\\') {
        return Err(wrong("it has a backslash, which nothing in it needs"));
    }
    let bundle: Bundle = read(bytes)?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(wrong("it is no Sigstore bundle of version 0.3"));
    }
    let Object(material) = bundle.verification_material;
    if !material.tlog_entries.is_empty() {
        return Err(wrong("it has entries of a transparency log, which are not understood"));
    }
    let Object(PublicKey { hint }) = material.public_key;
    let found =
        hex::array(&hint).map(KeyId).ok_or_else(|| wrong("its hint is no key's id: 64 lower-case hex digits"))?;
    if found != key.id() {
        return Err(ManifestError::OtherKey { found, given: key.id() });
    }
    let Object(envelope) = bundle.dsse_envelope;
    let [Object(Signature { sig, keyid })] = envelope.signatures.as_slice() else {
        return Err(wrong("it does not have just one signature"));
    };
    if envelope.payload_type != PAYLOAD_TYPE || !keyid.is_empty() {
        return Err(wrong("its payload is of another type, or its signature names another key"));
    }
    let decoded = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| wrong("its payload or signature is no base64"));
    let payload = decoded(&envelope.payload)?;
    if !key.verifies(&pae(PAYLOAD_TYPE, &payload), &decoded(sig)?) {
        return Err(ManifestError::Signature { key: key.id() });
    }
    let statement: Statement = read(&payload)?;
    if statement.statement_type != STATEMENT_TYPE || statement.predicate_type != PREDICATE_TYPE {
        return Err(wrong("what was signed is no model signature of version 1.0"));
    }
    let Object(Predicate { serialization: Object(serialization), resources }) = statement.predicate;
    if serialization.method != "files" {
        return Err(wrong("its digests are of pieces and not of whole files: sign with one digest for each file"));
    }
    let [Object(subject)] = statement.subject.as_slice() else {
        return Err(wrong("it does not have just one subject"));
    };
    let (files, root) = files(&resources)?;
    if hex::array(&subject.digest.0.sha256) != Some(root) {
        return Err(wrong("its subject's digest is not that of its files"));
    }
    Ok(Manifest {
        digest: Digest::of(bytes),
        form: Form::ModelSigning,
        signer: Some(key.id()),
        files,
        ignored: serialization.ignore_paths.iter().map(|path| path.trim_end_matches('/').to_owned()).collect(),
        allows_links: serialization.allow_symlinks,
    })
}

/// The files, and SHA-256 over their digests in the order in which they stand there.
fn files(resources: &[Object<Resource>]) -> Result<(BTreeMap<String, Expected>, [u8; 32]), ManifestError> {
    let mut files = BTreeMap::new();
    let mut root = Sha256::new();
    for Object(Resource { name, algorithm, digest }) in resources {
        let algorithm: Algorithm = algorithm
            .parse()
            .map_err(|_| wrong("a file's hash is neither sha256 nor blake3: sign with one of them"))?;
        let hash: [u8; 32] =
            hex::array(digest).ok_or_else(|| wrong("a file's digest is not 64 lower-case hex digits"))?;
        root.update(hash);
        add(&mut files, name, algorithm.expecting(hash))?;
    }
    Ok((files, root.finalize().into()))
}
