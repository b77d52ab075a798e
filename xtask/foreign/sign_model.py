"""Signs a model directory with PyPI's model-signing: a new key on the curve, one digest for each file.

    sign_model.py CURVE HASH MODEL SIGNATURE PUBLIC-KEY      CURVE is P-256 or P-384, HASH is sha256 or blake3
"""

import pathlib
import sys
import tempfile

import model_signing.hashing
import model_signing.signing
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

curve, algorithm, model, signature, public = sys.argv[1:]
key = ec.generate_private_key({"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}[curve]())
pem = serialization.Encoding.PEM
pathlib.Path(public).write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm=algorithm)
with tempfile.NamedTemporaryFile() as file:
    form = serialization.PrivateFormat.PKCS8
    file.write(key.private_bytes(pem, form, serialization.NoEncryption()))
    file.flush()
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=file.name)
    config.set_hashing_config(hashing).sign(model, signature)
