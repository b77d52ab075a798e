//! Nothing in a log can change unseen: every bit flipped, every truncation, frames moved about.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::time::Duration;

use audit_logging::reader::{self, What};
use audit_logging::{AuditLog, Kind, Options, Severity};
use common::{MemVfs, Rng, dir, leaf, options, segment};

const WAIT: Duration = Duration::from_secs(20);

/// A log of 100 records in one segment, each durable by itself, and where its frames lie: (offset, end, seq).
fn hundred(close: bool, segment_bytes: u64, log_id: &[u8; 16]) -> (MemVfs, Vec<(usize, usize, u64)>) {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), Options { log_id: Some(*log_id), ..options(&vfs, segment_bytes) }).unwrap();
    let mut rng = Rng(42);
    let own = if close { 98 } else { 99 };
    for n in 0..own {
        assert!(log.emit(Severity::Critical, &leaf(n, 200 + rng.below(120) as usize)).is_durable());
    }
    let image = vfs.copy();
    let vfs = if close {
        assert!(log.close(WAIT).is_durable());
        vfs
    } else {
        image
    };
    let frames = frames(&vfs);
    assert_eq!(frames.len(), 100);
    (vfs, frames)
}

fn frames(vfs: &MemVfs) -> Vec<(usize, usize, u64)> {
    reader::records_on(std::sync::Arc::new(vfs.clone()), &dir())
        .unwrap()
        .map(|record| {
            let record = record.unwrap();
            let start = record.offset as usize;
            (start, start + (32 + record.leaf.len()).next_multiple_of(8), record.seq)
        })
        .collect()
}

#[test]
fn every_single_bit_of_a_closed_log_is_found_and_named() {
    flip_every_bit(true);
}

#[test]
fn every_single_bit_of_a_log_that_was_not_closed_is_found_and_named() {
    flip_every_bit(false);
}

fn flip_every_bit(close: bool) {
    {
        let (vfs, frames) = hundred(close, 36 << 10, b"0123456789abcdef");
        let mut bytes = vfs.bytes(&segment(1));
        let used = frames.last().unwrap().1;
        assert!(bytes.len() > used && used > 27_000, "{used} of {}", bytes.len());
        let clean = reader::scan(&bytes);
        assert!(clean.is_intact() && clean.torn_tail.is_none() && clean.records == 100);
        assert_eq!(clean.clean_close, close);
        let (mut tampered, mut torn) = (0u32, 0u32);
        for byte in 0..used {
            let frame = frames.iter().find(|frame| (frame.0..frame.1).contains(&byte));
            // What the last frame says of itself is all there is: nothing after it proves that it was durable.
            let last = byte >= frames[99].0;
            for bit in 0..8 {
                bytes[byte] ^= 1 << bit;
                let report = reader::scan(&bytes);
                bytes[byte] ^= 1 << bit;
                match frame {
                    None => assert_eq!(report.violations[0].what, What::SegmentHeader, "byte {byte}"),
                    Some(&(offset, _, _)) if last => {
                        assert!(report.is_intact(), "byte {byte}: {report:?}");
                        assert_eq!(report.torn_tail.unwrap().offset, offset as u64);
                        assert_eq!((report.records, report.clean_close), (99, false));
                    }
                    Some(&(offset, _, seq)) => {
                        let violation = report.violations[0];
                        assert_eq!((violation.offset, violation.seq), (offset as u64, seq), "byte {byte} bit {bit}");
                        assert_eq!(violation.what, What::FrameDamaged);
                        assert_eq!((report.records, report.violations_total), (99, 1));
                    }
                }
                tampered += u32::from(!report.is_intact());
                torn += u32::from(report.torn_tail.is_some());
            }
        }
        assert_eq!((tampered + torn) as usize, used * 8);
        println!("close={close}: {} flips, {tampered} violations, {torn} in the last frame", used * 8);
    }
}

/// A log of several small segments, closed.
fn segments(close: bool) -> MemVfs {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&vfs, 4096)).unwrap();
    for n in 0..60 {
        assert!(log.emit(Severity::Critical, &leaf(n, 180)).is_durable());
    }
    let image = vfs.copy();
    if close {
        assert!(log.close(WAIT).is_durable());
        return vfs;
    }
    image
}

#[test]
fn flips_in_any_segment_of_a_directory_are_found() {
    let vfs = segments(true);
    let clean = reader::verify_on(&vfs, &dir()).unwrap();
    assert!(clean.is_intact() && clean.clean_close && clean.segments > 3, "{clean:?}");
    let mut rng = Rng(7);
    for index in 1..clean.segments {
        let path = segment(index);
        let good = vfs.bytes(&path);
        let used = good.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << rng.below(8);
            vfs.set_bytes(&path, &bad);
            let report = reader::verify_on(&vfs, &dir()).unwrap();
            let seen = !report.is_intact() || report.torn_tail.is_some();
            assert!(seen, "segment {index} byte {byte} of {used}: {report:?}");
            // In all but the last segment with records, every change is tampering, also in the unused end.
            if index + 1 < clean.segments {
                assert_eq!(report.violations[0].segment, index, "byte {byte}: {report:?}");
            }
        }
        vfs.set_bytes(&path, &good);
    }
}

#[test]
fn truncation_at_every_byte_is_found() {
    for close in [true, false] {
        let (vfs, frames) = hundred(close, 36 << 10, b"0123456789abcdef");
        let bytes = vfs.bytes(&segment(1));
        for cut in 0..bytes.len() {
            let report = reader::scan(&bytes[..cut]);
            // Segments have a fixed length from the start: no crash can shorten one.
            assert!(!report.is_intact(), "cut at {cut}");
            let whole = frames.iter().filter(|frame| frame.1 <= cut).count() as u64;
            assert_eq!(report.records, whole, "cut at {cut}");
        }
        for cut in (0..bytes.len()).step_by(331) {
            vfs.set_bytes(&segment(1), &bytes[..cut]);
            let before = reader::verify_on(&vfs, &dir()).unwrap();
            assert!(!before.is_intact());
            let log = AuditLog::open(&dir(), options(&vfs, 36 << 10)).unwrap();
            let found = log.status().recovered.unwrap();
            assert!(found.finding.is_some(), "cut at {cut}: {found:?}");
            assert!(log.emit(Severity::Critical, b"after").is_durable());
            assert!(log.close(WAIT).is_durable());
            assert_eq!(vfs.bytes(&segment(1)), &bytes[..cut], "the evidence is untouched");
            let after = reader::verify_on(&vfs, &dir()).unwrap();
            assert!(!after.is_intact() && after.clean_close, "cut at {cut}: {after:?}");
            assert!(after.violations.iter().all(|violation| violation.segment == 1), "cut at {cut}: {after:?}");
            let again = AuditLog::open(&dir(), options(&vfs, 36 << 10)).unwrap();
            assert_eq!(again.status().recovered, None, "stated once, not at every start");
            drop(again);
            for index in 2..6 {
                vfs.delete(&segment(index));
            }
        }
    }
}

#[test]
fn a_garbage_tail_is_torn_and_a_zero_tail_is_nothing() {
    let (vfs, frames) = hundred(false, 36 << 10, b"0123456789abcdef");
    let clean = vfs.bytes(&segment(1));
    let used = frames[99].1;
    let mut rng = Rng(3);
    for length in 1..(clean.len() - used).min(600) {
        let mut bytes = clean.clone();
        bytes[used..used + length].fill_with(|| rng.next() as u8);
        bytes[used + length - 1] |= 1;
        let report = reader::scan(&bytes);
        assert!(report.is_intact() && report.records == 100, "{length}: {report:?}");
        assert_eq!(report.torn_tail.unwrap().bytes, length as u64);
        if length % 50 == 1 {
            let vfs = vfs.copy();
            vfs.set_bytes(&segment(1), &bytes);
            let log = AuditLog::open(&dir(), options(&vfs, 36 << 10)).unwrap();
            let recovered = log.status().recovered.unwrap();
            assert_eq!(recovered.torn_tail.unwrap().bytes, length as u64);
            assert_eq!((recovered.finding, recovered.last_seq), (None, 100));
            assert!(log.close(WAIT).is_durable());
            let report = reader::verify_on(&vfs, &dir()).unwrap();
            assert!(report.is_intact() && report.torn_tail.is_none(), "{report:?}");
        }
    }
    let mut longer = clean.clone();
    longer.extend_from_slice(&[0; 100]);
    assert_eq!(reader::scan(&longer).violations[0].what, What::FileLength);
}

#[test]
fn a_record_deleted_inserted_doubled_moved_or_spliced_in_is_found() {
    let (vfs, frames) = hundred(true, 36 << 10, b"0123456789abcdef");
    let (other, _) = hundred(true, 36 << 10, b"another log, yes");
    let bytes = vfs.bytes(&segment(1));
    let other = other.bytes(&segment(1));
    let used = frames[99].1;
    let pad = |mut changed: Vec<u8>| {
        changed.resize(bytes.len(), 0);
        changed
    };
    for n in 0..99 {
        let (start, end, seq) = frames[n];
        // The close record has no successor: without it the log only looks as if it had not been closed.
        let deleted = pad([&bytes[..start], &bytes[end..used]].concat());
        let report = reader::scan(&deleted);
        assert_eq!(
            (report.violations[0].offset, report.violations[0].seq),
            (start as u64, seq),
            "deleted {n}: {report:?}"
        );
        let doubled = pad([&bytes[..end], &bytes[start..used]].concat());
        let report = reader::scan(&doubled);
        assert_eq!(report.violations[0].offset, end as u64, "doubled {n}");
        let (next, next_end, _) = frames[n + 1];
        let swapped =
            pad([&bytes[..start], &bytes[next..next_end], &bytes[start..end], &bytes[next_end..used]].concat());
        let report = reader::scan(&swapped);
        assert_eq!(report.violations[0].offset, start as u64, "swapped {n}: {report:?}");
        let mut spliced = bytes.clone();
        spliced[start..end].copy_from_slice(&other[start..end]);
        let report = reader::scan(&spliced);
        assert_eq!((report.violations[0].offset, report.violations[0].seq), (start as u64, seq), "spliced {n}");
        let mut zeroed = bytes.clone();
        zeroed[start..end].fill(0);
        let report = reader::scan(&zeroed);
        assert_eq!((report.violations[0].offset, report.violations[0].seq), (start as u64, seq), "zeroed {n}");
    }
    // An insertion is a doubled frame with another number: its checksum fails, or its number is taken.
    let mut inserted = [&bytes[..frames[10].1], &bytes[frames[10].0..used]].concat();
    let at = frames[10].1 + 8;
    inserted[at..at + 8].copy_from_slice(&12u64.to_le_bytes());
    assert!(!reader::scan(&pad(inserted)).is_intact());
}

/// What this crate alone cannot see, stated as a test: a log that was never closed, cut off between two records. Whoever
/// keeps a signed checkpoint elsewhere can.
#[test]
fn records_cut_off_at_the_end_of_an_open_log_need_an_anchor_elsewhere() {
    let (vfs, frames) = hundred(false, 36 << 10, b"0123456789abcdef");
    let mut bytes = vfs.bytes(&segment(1));
    bytes[frames[90].0..].fill(0);
    let report = reader::scan(&bytes);
    assert!(report.is_intact() && report.records == 90 && !report.clean_close);
}

#[test]
fn segments_removed_exchanged_or_replayed_are_found() {
    let vfs = segments(true);
    let last = reader::verify_on(&vfs, &dir()).unwrap().segments;
    for index in 1..last - 1 {
        let copy = vfs.copy();
        copy.delete(&segment(index));
        let report = reader::verify_on(&copy, &dir()).unwrap();
        let missing = report.violations.iter().find(|found| found.what == What::SegmentMissing).unwrap();
        assert_eq!(missing.segment, index);

        let copy = vfs.copy();
        let (one, two) = (vfs.bytes(&segment(index)), vfs.bytes(&segment(index + 1)));
        copy.set_bytes(&segment(index), &two);
        copy.set_bytes(&segment(index + 1), &one);
        let report = reader::verify_on(&copy, &dir()).unwrap();
        assert!(report.violations.iter().any(|found| found.what == What::ForeignSegment), "{report:?}");

        // An older state of the same segment: the next one knows where it ended.
        let copy = vfs.copy();
        let frames: Vec<u64> = reader::records_on(std::sync::Arc::new(vfs.clone()), &dir())
            .unwrap()
            .map(Result::unwrap)
            .filter(|record| record.segment == index)
            .map(|record| record.offset)
            .collect();
        let mut old = one.clone();
        old[*frames.last().unwrap() as usize..].fill(0);
        copy.set_bytes(&segment(index), &old);
        let report = reader::verify_on(&copy, &dir()).unwrap();
        assert_eq!(report.violations[0].segment, index, "{report:?}");
        assert_eq!(report.violations[0].what, What::LinkBroken);
    }
}

/// Deletes the segments named and checks that verify and open agree on the one that is missing.
fn without(vfs: &MemVfs, gone: &[u64], missing: u64) {
    let copy = vfs.copy();
    for &index in gone {
        copy.delete(&segment(index));
    }
    let seen = |report: &reader::Report| {
        let found: Vec<_> = report.violations.iter().map(|found| (found.what, found.segment)).collect();
        assert_eq!(found, [(What::SegmentMissing, missing)], "{gone:?}");
    };
    seen(&reader::verify_on(&copy, &dir()).unwrap());
    let before = reader::verify_on(&copy, &dir()).unwrap();
    let log = AuditLog::open(&dir(), options(&copy, 4096)).unwrap();
    let finding = log.status().recovered.unwrap().finding.unwrap();
    assert_eq!((finding.what, finding.segment), (What::SegmentMissing, missing), "{gone:?}");
    let seq = log.emit(Severity::Critical, b"going on").seq().unwrap();
    assert!(seq > before.last_seq + 65_536, "{seq} behind {}", before.last_seq);
    assert!(log.close(WAIT).is_durable());
    let after = reader::verify_on(&copy, &dir()).unwrap();
    seen(&after);
    assert!(log.status().records == after.records && after.records == before.records + 3, "{after:?}");
}

#[test]
fn the_newest_segments_missing_are_found_while_the_spare_is_there() {
    for vfs in [segments(true), segments(false)] {
        let spare = reader::verify_on(&vfs, &dir()).unwrap().segments;
        for first in 1..spare {
            without(&vfs, &(first..spare).collect::<Vec<_>>(), spare - 1);
        }
    }
    let vfs = MemVfs::default();
    drop(AuditLog::open(&dir(), options(&vfs, 4096)).unwrap());
    without(&vfs, &[1], 1);
}

/// Random bytes from `from` to the end of the only segment: a violation, kept as it is.
fn ruined_to_the_end(vfs: &MemVfs, from: usize, segment_bytes: u64) {
    let mut bytes = vfs.bytes(&segment(1));
    let mut rng = Rng(5);
    bytes[from..].fill_with(|| rng.next() as u8);
    vfs.set_bytes(&segment(1), &bytes);
    let report = reader::verify_on(vfs, &dir()).unwrap();
    assert_eq!((report.violations_total, report.torn_tail), (1, None), "{report:?}");
    assert_eq!((report.violations[0].what, report.violations[0].offset), (What::FrameDamaged, from as u64));
    let log = AuditLog::open(&dir(), options(vfs, segment_bytes)).unwrap();
    assert_eq!(log.status().recovered.unwrap().finding, Some(report.violations[0]));
    assert!(log.close(WAIT).is_durable());
    assert!(vfs.bytes(&segment(1)) == bytes, "evidence untouched");
    assert_eq!(reader::verify_on(vfs, &dir()).unwrap().violations, report.violations);
}

#[test]
fn a_tail_longer_than_any_batch_is_no_torn_tail() {
    for close in [true, false] {
        ruined_to_the_end(&hundred(close, 36 << 10, b"0123456789abcdef").0, 64, 36 << 10);
        let (vfs, frames) = hundred(close, 2 << 20, b"0123456789abcdef");
        ruined_to_the_end(&vfs, frames[60].0, 2 << 20);
    }
}

#[test]
fn no_writer_leaves_a_longer_tail_than_a_reader_calls_torn() {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), Options { queue_bytes: 16 << 20, ..options(&vfs, 8 << 20) }).unwrap();
    for n in 0..60 {
        assert!(log.emit(Severity::Routine, &leaf(n, 60_000)).seq().is_some());
    }
    let used = || vfs.bytes(&segment(1)).iter().rposition(|&byte| byte != 0).unwrap();
    while used() < 60 * 60_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut torn = 0;
    for seed in 0..60 {
        let cut = vfs.after_power_cut(seed);
        let report = reader::verify_on(&cut, &dir()).unwrap();
        assert!(report.is_intact(), "{report:?}");
        torn = torn.max(report.torn_tail.map_or(0, |torn| torn.bytes));
    }
    assert!((1..=1 << 20).contains(&torn), "{torn}");
    drop(log);
}

#[test]
fn a_stray_file_is_one_violation_and_no_number_is_given_twice() {
    for (close, spare, content) in
        [(true, true, &[][..]), (false, true, &[]), (false, false, &[]), (true, true, &[0; 4096]), (true, true, b"abc")]
    {
        let vfs = segments(close);
        let clean = reader::verify_on(&vfs, &dir()).unwrap();
        if !spare {
            vfs.delete(&segment(clean.segments));
        }
        vfs.set_bytes(&segment(clean.segments + 1), content);
        let check = |report: &reader::Report| {
            let found: Vec<_> = report.violations.iter().map(|found| found.segment).collect();
            assert_eq!(found, [clean.segments + 1], "{report:?}");
        };
        check(&reader::verify_on(&vfs, &dir()).unwrap());
        let mut last = clean.last_seq;
        for run in 1..4 {
            let log = AuditLog::open(&dir(), options(&vfs, 4096)).unwrap();
            assert_eq!(log.status().recovered.is_some(), run == 1, "stated once");
            let seq = log.emit(Severity::Critical, b"going on").seq().unwrap();
            assert!(seq > last, "{seq} behind {last}");
            last = seq;
            assert!(log.close(WAIT).is_durable());
            let report = reader::verify_on(&vfs, &dir()).unwrap();
            check(&report);
            assert_eq!((report.records, log.status().records), (clean.records + 3 * run, clean.records + 3 * run));
        }
    }
}

#[test]
fn a_stray_file_behind_a_torn_tail_makes_no_second_violation() {
    let (vfs, frames) = hundred(false, 36 << 10, b"0123456789abcdef");
    let mut bytes = vfs.bytes(&segment(1));
    bytes[frames[99].1..frames[99].1 + 20].fill(0x55);
    vfs.set_bytes(&segment(1), &bytes);
    vfs.set_bytes(&segment(3), &[]);
    let log = AuditLog::open(&dir(), options(&vfs, 36 << 10)).unwrap();
    let found = log.status().recovered.unwrap();
    assert_eq!((found.last_seq, found.torn_tail.unwrap().bytes, found.finding.unwrap().segment), (100, 20, 3));
    assert!(log.close(WAIT).is_durable());
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert_eq!((report.violations_total, report.violations[0].segment), (1, 3), "{report:?}");
    assert_eq!((report.records, report.torn_tail), (102, None));
}

/// What this crate alone cannot see, as above: the spare taken away with the tail, or records set to zero from somewhere
/// to the end, the close record with them.
#[test]
fn a_tail_cut_together_with_what_vouches_for_it_needs_an_anchor_elsewhere() {
    let vfs = segments(true);
    let spare = reader::verify_on(&vfs, &dir()).unwrap().segments;
    let copy = vfs.copy();
    copy.delete(&segment(spare));
    copy.delete(&segment(spare - 1));
    assert!(reader::verify_on(&copy, &dir()).unwrap().is_intact());
    let (vfs, frames) = hundred(true, 36 << 10, b"0123456789abcdef");
    let mut bytes = vfs.bytes(&segment(1));
    bytes[frames[97].0..].fill(0);
    let report = reader::scan(&bytes);
    assert!(report.is_intact() && report.records == 97 && !report.clean_close);
}

#[test]
fn damage_found_at_open_is_kept_stated_and_passed() {
    let (vfs, frames) = hundred(false, 36 << 10, b"0123456789abcdef");
    let mut bytes = vfs.bytes(&segment(1));
    bytes[frames[50].0 + 40] ^= 4;
    vfs.set_bytes(&segment(1), &bytes);
    let log = AuditLog::open(&dir(), options(&vfs, 36 << 10)).unwrap();
    let finding = log.status().recovered.unwrap().finding.unwrap();
    assert_eq!((finding.segment, finding.offset, finding.seq), (1, frames[50].0 as u64, 51));
    let seq = log.emit(Severity::Critical, b"going on").seq().unwrap();
    assert!(seq > 100);
    assert!(log.close(WAIT).is_durable());
    assert_eq!(vfs.bytes(&segment(1)), bytes, "evidence untouched");
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert_eq!(report.violations, [finding]);
    let first = reader::records_on(std::sync::Arc::new(vfs.clone()), &dir())
        .unwrap()
        .filter_map(Result::ok)
        .find(|record| record.segment == 2)
        .unwrap();
    assert_eq!(first.kind, Kind::Finding);
    let text = String::from_utf8(first.leaf).unwrap();
    assert!(text.contains("\"what\":\"durable record damaged\"") && text.contains("\"seq\":51"), "{text}");
}
