"""Judges an attestation with tools that are not ours: securesystemslib for the DSSE envelope and its signature,
in-toto-attestation for the statement, blake3 for the subjects' files. That the devices are those of the shards is read here.

    attestation.py ENVELOPE PUBLIC-KEY FILE ...
"""

import json
import pathlib
import sys

import blake3
from google.protobuf import json_format
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1 import statement_pb2
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

try:
    envelope_path, key_path, *files = map(pathlib.Path, sys.argv[1:])
    envelope = Envelope.from_dict(json.loads(envelope_path.read_text()))
    (keyid,) = envelope.signatures
    key = SSlibKey.from_crypto(load_pem_public_key(key_path.read_bytes()), keyid=keyid)
    accepted = envelope.verify([key], 1)
    assert keyid in accepted, "no signature by the key"
    assert envelope.payload_type == "application/vnd.in-toto+json", envelope.payload_type
    statement = json_format.Parse(envelope.payload, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    subjects = {subject.name: dict(subject.digest) for subject in statement.subject}
    for path in files:
        assert subjects[path.name]["blake3"] == blake3.blake3(path.read_bytes()).hexdigest(), path.name
    assert len(subjects) == len(files), subjects
    predicate = json_format.MessageToDict(statement.predicate)
    devices = [device["uuid"] for device in predicate["devices"]]
    # Each device that a shard names, once, in the order in which they are first named.
    assert devices == list(dict.fromkeys(shard["device"] for shard in predicate["shards"])), devices
    print(f"accepted {len(subjects)} subjects (devices: {len(devices)}), {statement.predicate_type}")
except Exception as error:  # whatever it stumbles over, it does not accept
    raise SystemExit(f"REJECTED: {type(error).__name__}: {error}")
