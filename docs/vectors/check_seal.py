"""A second implementation of the seal record, from docs/format.md and the standard library alone.

Usage: python3 check_seal.py seal.json
"""

import hashlib
import hmac
import json
import struct
import sys

DOMAIN = b"vram-residency/seal/v1"


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869."""
    prk = hmac.new(salt, secret, hashlib.sha256).digest()
    okm, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        okm += block
    return okm[:length]


def fields(record: bytes) -> list[bytes]:
    found = []
    while record:
        (length,) = struct.unpack_from("<I", record)
        assert 4 + length <= len(record), "a field is cut off"
        found.append(record[4 : 4 + length])
        record = record[4 + length :]
    return found


def encode(vector: dict) -> bytes:
    values = [
        DOMAIN,
        vector["shard_id"].encode(),
        vector["worker_id"].encode(),
        vector["device_kind"].encode(),
        bytes.fromhex(vector["device_uuid"]),
        struct.pack("<Q", vector["bytes"]),
        bytes.fromhex(vector["digest"]),
        bytes.fromhex(vector["table_digest"]),
        vector["model_ref"].encode(),
        struct.pack("<I", vector["shard_index"]),
        struct.pack("<I", vector["shard_count"]),
        struct.pack("<Q", vector["sealed_at_ns"]),
        vector["residency"].encode(),
        vector["protection"].encode(),
    ]
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        vectors = json.load(file)
    secret = bytes.fromhex(vectors["secret"])
    for vector in vectors["records"]:
        worker = vector["worker_id"].encode()
        key = hkdf_sha256(secret, b"vram-residency", b"seal key v1\0" + worker, 32)
        key_id = hkdf_sha256(secret, b"vram-residency", b"seal key id v1\0" + worker, 8)
        assert key_id.hex() == vectors["key_id"], "key id"
        signed = encode(vector)
        signature = hmac.new(key, signed, hashlib.sha256).digest()
        assert signature.hex() == vector["signature"], "signature"
        record = signed + struct.pack("<I", len(signature)) + signature
        assert record.hex() == vector["record"], "record"
        assert len(fields(record)) == 15, "fields"
    print(f"{len(vectors['records'])} records agree")


if __name__ == "__main__":
    main()
