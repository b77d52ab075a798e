//! What others hold of a log, and what it is good for.

use super::*;

#[test]
fn a_rewrite_with_the_logs_own_key_is_found_by_what_others_hold_and_by_the_log() {
    let scene = scene();
    let mut entries = scene.all();
    let record = seq(&entries[150]);
    entries[150][30] ^= 1;
    scene.rewrite(&entries, Some(&scene.signer()));
    attack("cosigned", &scene, &scene.ask(), What::HeldContradicts, None);
    let report = attack("replica", &scene, &Ask { held: true, ..scene.ask() }, What::HeldContradicts, Some(record));
    assert!(report.violations.iter().all(|violation| violation.index == Some(150)), "{report:#?}");
    attack("log", &scene, &Ask { wal: true, ..scene.ask() }, What::RecordEdited, Some(record));
    // Resealed with another key.
    let stranger = SigningKey::generate(ORIGIN).unwrap();
    scene.rewrite(&entries, Some(&stranger));
    attack("resealed", &scene, &scene.ask(), What::WrongKey, None);
    // Tiles made anew without a key.
    let fresh = self::scene();
    let mut entries = fresh.all();
    entries[600][30] ^= 1;
    fresh.rewrite(&entries, None);
    let report = attack("not signed anew", &fresh, &fresh.ask(), What::RootMismatch, None);
    assert_eq!(report.ranges.signed, fresh.cosigned, "what was cosigned before still holds");
}

#[test]
fn a_cut_below_what_others_hold_is_found_and_one_above_is_said_to_be_invisible() {
    let scene = scene();
    let entries = scene.all();
    let (cosigned, replicated) = (scene.cosigned as usize, scene.replicated as usize);
    // The whole directory put back: everything, with valid signatures, only shorter.
    scene.rewrite(&entries[..cosigned - 1], Some(&scene.signer()));
    let report = attack("below cosigned", &scene, &scene.ask(), What::HeldAhead, None);
    assert_eq!(
        (report.violations[0].file.as_str(), report.violations[0].index),
        ("cosigned", Some(cosigned as u64 - 1))
    );
    scene.rewrite(&entries[..replicated - 1], Some(&scene.signer()));
    attack("below replicated", &scene, &Ask { held: true, ..scene.ask() }, What::HeldAhead, None);
    // Nobody was told of what is cut here.
    scene.rewrite(&entries[..replicated + 5], Some(&scene.signer()));
    let report = scene.report(&Ask { held: true, ..scene.ask() });
    assert!(report.is_intact(), "{report:#?}");
    assert_eq!(report.vouched(), scene.replicated);
    assert!(report.statement().contains("cannot be seen"));
    scene.vfs.delete(&scene.path("cosigned"));
    let report = scene.report(&scene.ask());
    assert_eq!((report.vouched(), report.is_intact()), (0, true));
    assert!(report.statement().starts_with("Nobody else holds"), "{}", report.statement());
    // A checkpoint that the auditor kept is enough.
    let kept = scene.replica.bytes(&tlog_dir().join("checkpoint"));
    scene.rewrite(&entries[..cosigned], Some(&scene.signer()));
    let source = common::source(&scene.vfs);
    let keys = [scene.key.clone()];
    let question =
        Question { held: vec![("kept.txt".into(), Held::Checkpoint(kept))], ..Question::new(&source, &keys) };
    let report = evidence::verify(&question).unwrap();
    assert_eq!(whats(&report), [(What::HeldAhead, None)], "{report:#?}");
}

#[test]
fn what_others_hold_is_not_believed_without_a_signature() {
    let scene = scene();
    let ask = Ask { held: true, ..scene.ask() };
    let stranger = SigningKey::generate(ORIGIN).unwrap();
    let text = Checkpoint { origin: ORIGIN.into(), size: 5000, root: Hash([1; 32]) }.to_string();
    scene.replica.set_bytes(&tlog_dir().join("checkpoint"), &SignedNote::sign(&text, &[&stranger]).to_bytes());
    let report = attack("replica forged", &scene, &ask, What::HeldInvalid, None);
    assert_eq!(report.violations_total, 1);
    let note = SignedNote::parse(&scene.bytes("cosigned")).unwrap();
    let cosigner = SigningKey::generate_cosigner("witness.example/w1").unwrap();
    let plain = SignedNote::sign(note.text(), &[&scene.signer()]);
    scene.set("cosigned", &plain.with_signature_lines([cosigner.sign(note.text(), 5)]).to_bytes());
    let report = attack("cosigned by a stranger", &scene, &scene.ask(), What::CosignedInvalid, None);
    assert_eq!(report.ranges.cosigned, 0);
    let early = plain.with_signature_lines([scene.witness.sign(note.text(), 1_999_000_000)]);
    scene.set("cosigned", &early.to_bytes());
    attack("from the future", &scene, &scene.ask(), What::CosignatureFromFuture, None);
}

#[test]
fn a_key_that_was_given_up_signs_nothing_more_and_a_forged_change_is_named() {
    let vfs = MemVfs::default();
    let old = make_key(&vfs);
    let old_signer = publish::read_signer(&vfs, &key_file()).unwrap();
    let log = AuditLog::open(&dir(), options(&vfs, 16384)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    let new = publish::generate(&vfs, &publish::next_file(&key_file()), ORIGIN).unwrap();
    while publisher.status().vkey != new.to_string() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(log.emit(Severity::Critical, b"under the new key").is_durable());
    assert!(log.close(WAIT).is_durable());
    publisher.finish(WAIT);
    let (size, root) = (publisher.status().signed_size, publisher.status().signed_root);
    let keys = [old.clone()];
    let report = |vfs: &MemVfs| evidence::verify(&Question::new(&common::source(vfs), &keys)).unwrap();
    assert!(report(&vfs).is_intact());
    let text = Checkpoint { origin: ORIGIN.into(), size, root }.to_string();
    let resealed = vfs.copy();
    resealed.set_bytes(&tlog_dir().join("checkpoint"), &SignedNote::sign(&text, &[&old_signer]).to_bytes());
    assert_eq!(whats(&report(&resealed)), [(What::RetiredKey, None)]);
    let rotation = vfs.paths().into_iter().find(|path| path.starts_with(tlog_dir().join("rotation"))).unwrap();
    let note = SignedNote::parse(&vfs.bytes(&rotation)).unwrap();
    let stranger = SigningKey::generate(ORIGIN).unwrap();
    vfs.set_bytes(&rotation, &SignedNote::sign(note.text(), &[&old_signer, &stranger]).to_bytes());
    let forged = report(&vfs);
    let found = whats(&forged);
    assert!(found.iter().any(|(what, record)| *what == What::RotationInvalid && record.is_some()), "{forged:#?}");
    assert!(found.contains(&(What::WrongKey, None)), "{forged:#?}");
}
