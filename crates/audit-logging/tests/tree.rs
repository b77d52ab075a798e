//! The tree against a naive reading of RFC 6962: roots, tiles, proofs, and that nothing else is accepted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::note::{SignedNote, SigningKey};
use audit_logging::tlog::proof::{self, Proof, ProofError};
use audit_logging::tlog::source::{Source, SourceError};
use audit_logging::tlog::tree::{self, Hash, MAX_SIZE, Tile, Tree, TreeError};
use audit_logging::{Kind, Severity};
use common::Rng;
use proptest::prelude::*;

/// RFC 6962, section 2.1, word for word.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::EMPTY_TREE,
        [leaf] => *leaf,
        _ => {
            let k = 1 << (leaves.len() - 1).ilog2();
            tree::node_hash(naive_root(&leaves[..k]), naive_root(&leaves[k..]))
        }
    }
}

fn naive_inclusion(leaves: &[Hash], index: usize) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return vec![];
    }
    let k = 1 << (leaves.len() - 1).ilog2();
    let (mut proof, other) = if index < k {
        (naive_inclusion(&leaves[..k], index), naive_root(&leaves[k..]))
    } else {
        (naive_inclusion(&leaves[k..], index - k), naive_root(&leaves[..k]))
    };
    proof.push(other);
    proof
}

fn naive_consistency(leaves: &[Hash], old: usize, whole: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if whole { vec![] } else { vec![naive_root(leaves)] };
    }
    let k = 1 << (leaves.len() - 1).ilog2();
    let (mut proof, other) = if old <= k {
        (naive_consistency(&leaves[..k], old, whole), naive_root(&leaves[k..]))
    } else {
        (naive_consistency(&leaves[k..], old - k, false), naive_root(&leaves[..k]))
    };
    proof.push(other);
    proof
}

#[derive(Default, Clone)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Source for Files {
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        Ok(self.0.get(path).cloned())
    }
}

fn leaf(n: u64) -> Hash {
    tree::leaf_hash(&n.to_le_bytes())
}

/// Grows a tree to `size`, keeping every full tile and the partial ones at the end.
fn grow(size: u64) -> (Tree, Files, Vec<Hash>) {
    let (mut tree, mut files) = (Tree::new(), Files::default());
    let leaves: Vec<Hash> = (0..size).map(leaf).collect();
    for leaf in &leaves {
        tree.push(*leaf, &mut |tile, bytes| {
            assert!(files.0.insert(tile.path(), bytes.to_vec()).is_none());
        })
        .unwrap();
    }
    for (tile, bytes) in tree.partial_tiles() {
        files.0.insert(tile.path(), bytes.to_vec());
    }
    (tree, files, leaves)
}

#[test]
fn the_empty_tree_and_the_leaf_prefix_are_those_of_the_rfc() {
    // SHA-256 of nothing, and of one zero byte.
    assert_eq!(Tree::new().root().to_string(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    assert_eq!(tree::leaf_hash(b"").to_string(), "bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=");
}

#[test]
fn every_root_up_to_700_is_the_naive_one_and_the_tree_can_be_taken_up_there() {
    let (mut tree, leaves) = (Tree::new(), (0..700).map(leaf).collect::<Vec<_>>());
    let mut files = Files::default();
    for size in 0..=700usize {
        assert_eq!(tree.root(), naive_root(&leaves[..size]), "{size}");
        let mut now = files.clone();
        now.0.extend(tree.partial_tiles().map(|(tile, bytes)| (tile.path(), bytes.to_vec())));
        let expected: Vec<Tile> = tree::tiles_between(0, size as u64).filter(|tile| !tile.is_entries()).collect();
        assert_eq!(now.0.len(), expected.len());
        for tile in expected {
            assert_eq!(now.0[&tile.path()].len(), 32 * usize::from(tile.width()), "{tile}");
        }
        let again = Tree::resume(&now, size as u64, tree.root()).unwrap();
        assert_eq!((again.size(), again.root()), (size as u64, tree.root()));
        assert!(size == 0 || Tree::resume(&now, size as u64, leaf(1)).is_err());
        if let Some(next) = leaves.get(size) {
            tree.push(*next, &mut |tile, bytes| drop(files.0.insert(tile.path(), bytes.to_vec()))).unwrap();
        }
    }
}

#[test]
fn every_proof_of_small_trees_is_the_naive_one_and_holds() {
    for size in (1..=40).chain([255, 256, 257, 511, 513, 600]) {
        let (tree, files, leaves) = grow(size);
        let root = tree.root();
        for index in 0..size {
            let proof = tree::prove_inclusion(&files, size, root, index).unwrap();
            assert_eq!(proof, naive_inclusion(&leaves, index as usize), "{index} of {size}");
            tree::check_inclusion(&proof, size, root, index, leaf(index)).unwrap();
            assert!(tree::check_inclusion(&proof, size, root, index, leaf(index + 1)).is_err());
            assert!(tree::check_inclusion(&proof, size, root, (index + 1) % size.max(2), leaf(index)).is_err());
        }
        for old in 1..=size {
            let proof = tree::prove_consistency(&files, old, size, root).unwrap();
            assert_eq!(proof, naive_consistency(&leaves, old as usize, true), "{old} of {size}");
            let old_root = naive_root(&leaves[..old as usize]);
            tree::check_consistency(&proof, old, old_root, size, root).unwrap();
            assert!(tree::check_consistency(&proof, old, leaf(9), size, root).is_err());
        }
    }
}

#[test]
fn numbers_of_no_tree_are_errors_and_no_panic() {
    let (tree, files, _) = grow(300);
    let (root, proof) = (tree.root(), vec![leaf(1); 70]);
    for size in [0, 1, 299, 300, MAX_SIZE, MAX_SIZE + 1, u64::MAX] {
        for index in [0, 1, 299, 300, MAX_SIZE - 1, MAX_SIZE, u64::MAX] {
            for length in [0, 1, 9, 64, 65, 70] {
                let _ = tree::check_inclusion(&proof[..length], size, root, index, leaf(0)).unwrap_err();
                let holds = tree::check_consistency(&proof[..length], index, root, size, root).is_ok();
                assert_eq!(holds, length == 0 && index == size && (1..=MAX_SIZE).contains(&size), "{size} {index}");
            }
            if (size, index) != (300, 0) && (size, index) != (300, 1) && (size, index) != (300, 299) {
                assert!(tree::prove_inclusion(&files, size, root, index).is_err(), "{index} of {size}");
            }
            assert_eq!(
                tree::prove_consistency(&files, index, size, root).is_ok(),
                size <= MAX_SIZE && index <= size && (index == 0 || index == size || size == 300),
                "{index} of {size}"
            );
        }
        let taken = Tree::resume(&files, size, root);
        assert_eq!(taken.is_ok(), size == 300, "{size}");
    }
}

#[test]
fn tiles_that_were_changed_cut_or_exchanged_prove_nothing() {
    let (tree, files, _) = grow(70_000);
    let (size, root) = (70_000, tree.root());
    tree::prove_inclusion(&files, size, root, 300).unwrap();
    let touched = Tile::hashes(0, 1, 256).unwrap().path();
    for change in 0..4 {
        let mut files = files.clone();
        let other = files.0["tile/0/002"].clone();
        let tile = files.0.get_mut(&touched).unwrap();
        match change {
            0 => tile[8191] ^= 0x80,
            1 => drop(tile.pop()),
            2 => *tile = other,
            _ => drop(files.0.remove(&touched)),
        }
        let error = tree::prove_inclusion(&files, size, root, 300).unwrap_err();
        assert!(matches!(error, TreeError::Tiles { .. } | TreeError::Missing { .. }), "{error}");
        tree::prove_inclusion(&files, size, root, 1000).unwrap();
    }
    // The partial tile of an older tree may be gone: its part of the full one serves.
    let (older, _, leaves) = grow(300);
    assert_eq!(tree::prove_inclusion(&files, 300, older.root(), 299).unwrap(), naive_inclusion(&leaves, 299));
}

fn bundle_of(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bundle = Vec::new();
    entries.iter().for_each(|entry| entry::push(&mut bundle, entry));
    bundle
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn larger_trees_agree_with_the_naive_one(size in 1u64..40_000, at in any::<u64>(), old in any::<u64>()) {
        let (tree, files, leaves) = grow(size);
        let (root, index, old) = (tree.root(), at % size, 1 + old % size);
        prop_assert_eq!(root, naive_root(&leaves));
        let proof = tree::prove_inclusion(&files, size, root, index).unwrap();
        prop_assert_eq!(&proof, &naive_inclusion(&leaves, index as usize));
        for (n, _) in proof.iter().enumerate() {
            let mut changed = proof.clone();
            changed[n].0[(at % 32) as usize] ^= 1 << (old % 8);
            prop_assert!(tree::check_inclusion(&changed, size, root, index, leaf(index)).is_err());
        }
        let proof = tree::prove_consistency(&files, old, size, root).unwrap();
        prop_assert_eq!(&proof, &naive_consistency(&leaves, old as usize, true));
        tree::check_consistency(&proof, old, naive_root(&leaves[..old as usize]), size, root).unwrap();
    }

    #[test]
    fn any_proof_is_refused_without_a_panic(
        hashes in proptest::collection::vec(any::<[u8; 32]>().prop_map(Hash), 0..70),
        (size, index) in (any::<u64>(), any::<u64>()),
        small in 0u64..100,
    ) {
        for (size, index) in [(size, index), (size >> 24, index >> 25), (small, index % 100)] {
            prop_assert!(tree::check_inclusion(&hashes, size, Hash::EMPTY_TREE, index, leaf(0)).is_err());
            let same = hashes.is_empty() && index == 0 && size == 0;
            prop_assert!(tree::check_consistency(&hashes, index, Hash::EMPTY_TREE, size, Hash::EMPTY_TREE).is_err() || same || (hashes.is_empty() && (index == size || index == 0)));
        }
    }

    #[test]
    fn entries_and_bundles_come_back(
        records in proptest::collection::vec((1..u64::MAX, any::<bool>(), 1u8..=10, proptest::collection::vec(any::<u8>(), 0..200)), 0..256),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut entries = Vec::new();
        for (seq, critical, kind, leaf) in &records {
            let kind = if *kind == 10 { Kind::Publication } else { Kind::Event };
            let severity = if *critical { Severity::Critical } else { Severity::Routine };
            let entry = Entry { seq: *seq, kind, severity, leaf };
            let bytes = entry.to_bytes();
            prop_assert_eq!(Entry::parse(&bytes), Ok(entry));
            prop_assert_eq!(&bytes[..8], &seq.to_le_bytes());
            entries.push(bytes);
        }
        let bundle = bundle_of(&entries);
        prop_assert_eq!(entry::split(&bundle).unwrap(), entries);
        if let Ok(parts) = entry::split(&noise) {
            prop_assert_eq!(bundle_of(&parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>()), noise.clone());
        }
        if let Ok(entry) = Entry::parse(&noise) {
            prop_assert_eq!(entry.to_bytes(), noise);
        }
    }
}

/// A published log of `size` entries, signed, with `cosigned` at an older size.
fn published(size: u64, cosigned: u64) -> (Files, SigningKey, SigningKey) {
    let key = SigningKey::generate("node/vram-audit/1").unwrap();
    let witness = SigningKey::generate_cosigner("witness").unwrap();
    let (tree, mut files, _) = grow(size);
    let checkpoint = |tree: &Tree| {
        Checkpoint { origin: "node/vram-audit/1".into(), size: tree.size(), root: tree.root() }.to_string()
    };
    files.0.insert("checkpoint".into(), SignedNote::sign(&checkpoint(&tree), &[&key]).to_bytes());
    let (older, older_files, _) = grow(cosigned);
    files.0.extend(older_files.0);
    let older = SignedNote::sign(&checkpoint(&older), &[&key]);
    let line = witness.sign(older.text(), 1_795_000_000);
    files.0.insert("cosigned".into(), older.with_signature_lines([line]).to_bytes());
    (files, key, witness)
}

#[test]
fn a_proof_to_carry_away_holds_for_its_entry_only() {
    let (files, key, witness) = published(1000, 700);
    let (keys, witnesses) = ([key.verifier().clone()], [witness.verifier().clone()]);
    for (index, cosigned) in [(0, true), (699, true), (700, false), (999, false)] {
        let proof = proof::prove(&files, &keys, index).unwrap();
        let text = proof.to_string();
        let again = Proof::parse(text.as_bytes()).unwrap();
        assert_eq!((&again, again.to_string()), (&proof, text));
        let entry = u64::to_le_bytes(index);
        let proven = again.check(&entry, &keys, &witnesses, usize::from(cosigned)).unwrap();
        assert_eq!(proven.checkpoint.size, if cosigned { 700 } else { 1000 });
        assert_eq!(proven.cosignatures.len(), usize::from(cosigned));
        assert!(matches!(again.check(&entry, &keys, &witnesses, 2), Err(ProofError::Quorum { .. })));
        assert!(matches!(again.check(b"another", &keys, &[], 0), Err(ProofError::Tree(TreeError::Proof))));
        let stranger = SigningKey::generate("node/vram-audit/1").unwrap();
        assert!(matches!(again.check(&entry, &[stranger.verifier().clone()], &[], 0), Err(ProofError::Checkpoint(_))));
        for at in 0..again.to_string().len() {
            let mut changed = again.to_string().into_bytes();
            changed[at] ^= 1;
            let holds =
                Proof::parse(&changed).and_then(|proof| proof.check(&entry, &keys, &witnesses, usize::from(cosigned)));
            assert!(holds.is_err(), "byte {at} of the proof of {index}");
        }
    }
    assert!(matches!(proof::prove(&files, &keys, 1000), Err(ProofError::Tree(TreeError::OutOfBounds { .. }))));
    assert!(matches!(proof::prove(&Files::default(), &keys, 0), Err(ProofError::NoCheckpoint)));
}

#[test]
fn a_proof_in_a_million_records_is_small_and_quick() {
    let (files, key, witness) = published(1_000_000, 999_000);
    let keys = [key.verifier().clone()];
    let (mut largest, mut slowest) = (0, std::time::Duration::ZERO);
    let mut rng = Rng(3);
    for _ in 0..200 {
        let start = std::time::Instant::now();
        let proof = proof::prove(&files, &keys, rng.below(1_000_000)).unwrap().to_string();
        slowest = slowest.max(start.elapsed());
        largest = largest.max(proof.len());
        assert!(Proof::parse(proof.as_bytes()).unwrap().checkpoint.cosignatures(&[witness.verifier().clone()]).is_ok());
    }
    println!("largest proof {largest} bytes, slowest {slowest:?}");
    assert!(largest <= 2048, "{largest}");
}

#[test]
fn any_bytes_are_a_proof_or_none() {
    let (files, key, _) = published(300, 200);
    let good = proof::prove(&files, &[key.verifier().clone()], 7).unwrap().to_string().into_bytes();
    let mut rng = Rng(5);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            let n = (rng.below(60) as usize).min(bytes.len() - at);
            match rng.below(4) {
                0 => drop(bytes.drain(at..at + n)),
                1 => bytes[at] = rng.next() as u8,
                2 => bytes[at] = b'\n',
                _ => bytes.extend_from_within(at..at + n),
            }
            if bytes.is_empty() {
                break;
            }
        }
        if let Ok(proof) = Proof::parse(&bytes) {
            assert_eq!(proof.to_string().into_bytes(), bytes);
        }
    }
}
