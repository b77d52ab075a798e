"""Verifies a published audit log with aics-tlog, which is not ours: the signature of the newest checkpoint, that every
older checkpoint given is a beginning of it, and that every tile and every entry is the one that the tree holds.

    verify.py DIRECTORY VKEY-FILE [OLDER-CHECKPOINT ...]
"""

import pathlib
import sys

import aics_tlog


def opened(path, key):
    note = aics_tlog.parse_note(path.read_bytes())
    found = aics_tlog.verify_checkpoint(note, key, expected_origin=key.name)
    if not found.ok:
        raise SystemExit(f"REJECTED: {path}: {found.error}")
    return aics_tlog.parse_checkpoint(note.text)


def main(directory, vkey, older):
    key = aics_tlog.read_vkey_file(vkey.read_text())
    newest = opened(directory / "checkpoint", key)
    tiles = aics_tlog.FileSystemTileReader(directory)
    for path in older:
        old = opened(path, key)
        proof = aics_tlog.consistency_proof_from_tiles(tiles, old.size, newest.size)
        if not aics_tlog.verify_consistency(old.size, newest.size, old.root, newest.root, proof):
            raise SystemExit(f"REJECTED: {path} is no beginning of the log")
    found = aics_tlog.audit_tiles(tiles, newest.size, newest.root)
    print(f"accepted {newest.size} entries in {found.tiles} tiles and {found.bundles} bundles, {len(older)} older checkpoints")


try:
    paths = [pathlib.Path(word) for word in sys.argv[1:]]
    main(paths[0], paths[1], paths[2:])
except Exception as error:  # whatever it stumbles over, it does not accept
    raise SystemExit(f"REJECTED: {type(error).__name__}: {error}")
