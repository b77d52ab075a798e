//! Publishing: what is durable is published, signed and provable; what was signed is never taken back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::time::Duration;

use audit_logging::publish::{self, Publisher};
use audit_logging::{AuditLog, Severity};
use common::{MemVfs, dir, leaf, make_key, options, publish_options};

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn what_is_durable_is_published_signed_and_provable() {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    let key = make_key(&vfs);
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    for n in 0..700 {
        assert!(log.emit(Severity::Critical, &leaf(n, 100)).is_durable());
    }
    assert!(log.close(WAIT).is_durable());
    let finished = publisher.finish(WAIT);
    assert!(finished.caught_up, "{finished:?} {:?}", publisher.status());
    assert_eq!(finished.size, 702);
    let _ = (key, publish::read_signed(&vfs, &publish_options().key_file).unwrap().unwrap());
}
