//! Records that go without leave, files that are lost, and who is accused of it.

use super::*;

#[test]
fn nobody_can_make_records_go_by_saying_so() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1000);
    session.prune(300).unwrap();
    session.write(300);
    session.close();
    is_good(&vfs, &key);
    let keys = [key];
    let minimum = tlog_dir().join("minimum-index");
    let bundle = |number: u64| tlog_dir().join(format!("tile/entries/{number:03}"));

    // A file that is not signed permits nothing.
    let copy = vfs.copy();
    copy.set_bytes(&minimum, b"512\n");
    copy.delete(&bundle(1));
    let report = verify(&copy, &keys);
    assert_eq!(whats(&report), [What::BundleMissing, What::PruningUnannounced], "{report:?}");
    assert_eq!((report.violations[0].index, report.pruned), (Some(256), 256));
    let copy = vfs.copy();
    copy.delete(&bundle(1));
    assert_eq!(whats(&verify(&copy, &keys)), [What::BundleMissing]);

    // Nor does one beside the segments, with or without a record in the log's own end.
    let kept: Vec<_> = (1..100).filter(|&index| vfs.paths().contains(&segment(index))).collect();
    let link = reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap);
    let first_of_third = link.filter(|record| record.segment == kept[2]).map(|record| record.seq).min().unwrap();
    let forged = forge(kept[2], first_of_third - 1);
    let copy = vfs.copy();
    copy.set_bytes(&dir().join("pruned"), forged.as_bytes());
    copy.delete(&segment(kept[0]));
    copy.delete(&segment(kept[1]));
    let log = reader::verify_on(&copy, &dir()).unwrap();
    assert_eq!(log.violations[0].what, reader::What::PruningUnannounced, "{log:?}");
    assert_eq!(log.violations_total, 1);
    assert!(whats(&verify(&copy, &keys)).contains(&What::PruningUnannounced));
    let log = AuditLog::open(&dir(), options(&copy, 8192)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    until("it is refused", || publisher.status().refused.is_some());
    let refused = publisher.status().refused;
    assert!(matches!(refused, Some(Refusal::Unannounced { .. } | Refusal::Root { .. })), "{refused:?}");
    assert!(matches!(publisher.prune(PruneOptions::before(500), WAIT), Err(PruneError::Refused(_))));

    // Without its file the log is one whose beginning was removed, and a file of nonsense is none.
    for file in [None, Some(&b"{}"[..]), Some(b""), Some(&[0xff; 5000])] {
        let copy = vfs.copy();
        match file {
            None => copy.delete(&dir().join("pruned")),
            Some(bytes) => copy.set_bytes(&dir().join("pruned"), bytes),
        }
        let log = reader::verify_on(&copy, &dir()).unwrap();
        assert!(log.violations.iter().any(|violation| violation.what == reader::What::SegmentMissing), "{log:?}");
        assert!(whats(&verify(&copy, &keys)).contains(&What::LogDamaged));
    }
}

#[test]
fn what_is_left_of_the_old_is_still_checked() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1200);
    let pruned = session.prune(800).unwrap();
    session.close();
    is_good(&vfs, &key);
    let keys = [key];

    // Records that are only in the segments any more are known by their hashes.
    let old: Vec<_> = records(&vfs).into_iter().filter(|(seq, _)| *seq < pruned.first_seq).collect();
    assert!(!old.is_empty(), "some segment begins before the first bundle: {pruned:?}");
    let copy = vfs.copy();
    let (path, at) = find(&copy, &old[0].1);
    reseal(&copy, &path, at, old[0].1.len());
    assert!(reader::verify_on(&copy, &dir()).unwrap().is_intact(), "the checksums are right");
    let report = verify(&copy, &keys);
    assert_eq!(whats(&report), [What::RecordEdited], "{report:?}");
    assert_eq!(report.violations[0].record, Some(old[0].0));

    // The hashes themselves are, too; and what cannot be made anew is not.
    for damage in [
        |vfs: &MemVfs| vfs.flip(&tlog_dir().join("tile/0/001"), 77),
        |vfs: &MemVfs| {
            vfs.delete(&tlog_dir().join("tile/0/001"));
        },
    ] {
        let copy = vfs.copy();
        damage(&copy);
        assert!(!verify(&copy, &keys).is_intact());
        let session = Session::open(&copy, 1 << 20);
        until("it is refused", || session.publisher.status().refused.is_some());
        let refused = session.publisher.status().refused.unwrap();
        let named = Refusal::Irreplaceable { file: "tile/0/001".to_owned() };
        assert!(refused == named || matches!(refused, Refusal::Root { .. } | Refusal::File { .. }), "{refused:?}");
    }
}

/// Where some bytes are in the segments.
fn find(vfs: &MemVfs, leaf: &[u8]) -> (std::path::PathBuf, usize) {
    for index in 1..200 {
        if vfs.paths().contains(&segment(index)) {
            let bytes = vfs.bytes(&segment(index));
            if let Some(at) = bytes.windows(leaf.len()).position(|window| window == leaf) {
                return (segment(index), at);
            }
        }
    }
    panic!("not there");
}

/// Changes one byte of a leaf and makes the checksums right, as somebody would who knows the format.
fn reseal(vfs: &MemVfs, path: &std::path::Path, at: usize, length: usize) {
    const HEADER: usize = 32;
    const LEAF_CRC: usize = 4;
    let mut bytes = vfs.bytes(path);
    bytes[at + 10] ^= 1;
    let (frame, padded) = (at - HEADER, (HEADER + length).div_ceil(8) * 8 - HEADER);
    let crc = crc32c::crc32c(&bytes[at..at + padded]);
    let salt = u32::from_le_bytes(bytes[60..64].try_into().unwrap());
    bytes[frame + LEAF_CRC..frame + LEAF_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    let header = crc32c::crc32c_append(salt, &bytes[frame..frame + HEADER - 4]);
    bytes[frame + HEADER - 4..frame + HEADER].copy_from_slice(&header.to_le_bytes());
    vfs.set_bytes(path, &bytes);
}

#[test]
fn a_lost_file_is_named_and_an_honest_tile_is_not_accused() {
    let vfs = MemVfs::default();
    make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1200);
    let pruned = session.prune(800).unwrap();
    session.close();
    let refused = |vfs: &MemVfs| {
        let session = Session::open(vfs, 1 << 20);
        until("it is refused", || session.publisher.status().refused.is_some());
        session.publisher.status().refused.unwrap()
    };
    let copy = vfs.copy();
    let floor = copy.bytes(&dir().join("pruned"));
    copy.delete(&dir().join("pruned"));
    assert_eq!(refused(&copy), Refusal::Beginning { dir: dir() });
    copy.set_bytes(&dir().join("pruned"), &floor);
    let mut session = Session::open(&copy, 2 << 20);
    session.write(1);
    assert_eq!(session.close().refused, None, "and put back, it is good");
    // A record whose bundle is gone, changed with the right checksums: the tile is right, and says so by the one above it.
    let (_, record) = records(&vfs).into_iter().find(|(seq, _)| *seq < pruned.first_seq).unwrap();
    let (path, at) = find(&vfs, &record);
    reseal(&vfs, &path, at, record.len());
    assert!(matches!(refused(&vfs), Refusal::Records { .. }), "{:?}", refused(&vfs));
}

#[test]
fn a_lost_tile_accuses_no_record_and_what_is_no_file_hides_nothing() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1400);
    session.prune(800).unwrap();
    session.close();
    is_good(&vfs, &key);
    let copy = vfs.copy();
    copy.delete(&tlog_dir().join("tile/0/002"));
    let report = verify(&copy, std::slice::from_ref(&key));
    assert!(whats(&report).contains(&What::TileMissing), "{report:?}");
    assert!(!whats(&report).contains(&What::RecordEdited), "{report:?}");
    // Larger than any file, and beside it a record that was changed.
    vfs.set_bytes(&tlog_dir().join("tile/0/004"), &vec![0; 17 << 20]);
    vfs.flip(&tlog_dir().join("tile/entries/003"), 200);
    let report = verify(&vfs, &[key]);
    assert!(whats(&report).contains(&What::NoFile) && whats(&report).contains(&What::EntryEdited), "{report:?}");
}
