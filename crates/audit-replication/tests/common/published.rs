//! A log on the real disk with its publisher, to be replicated.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::publish::{self, PublishOptions, Publisher};
use audit_logging::{AuditLog, Disk, Severity};
use audit_replication::{Node, Options, Published, Replication, Status};

pub(crate) struct Log {
    pub(crate) log: AuditLog,
    pub(crate) publisher: Arc<Publisher>,
    /// The longest that a record waited for the disk.
    pub(crate) worst: Duration,
    emitted: u64,
}

impl Log {
    /// Opens the log in `dir/log`, with a key in `dir/audit.key`.
    pub(crate) fn open(dir: &Path, change: impl FnOnce(&mut PublishOptions)) -> Self {
        let key = dir.join("audit.key");
        if !key.exists() {
            publish::generate(&Disk, &key, "node.example/vram-audit/0a1b2c3d").unwrap();
        }
        let home = dir.join("log");
        let log = AuditLog::open(&home, audit_logging::Options::default()).unwrap();
        let mut options = PublishOptions::new(key);
        options.interval = Duration::from_millis(200);
        change(&mut options);
        let publisher = Arc::new(Publisher::start(&log, options).unwrap());
        Self { log, publisher, worst: Duration::ZERO, emitted: 0 }
    }

    pub(crate) fn node(&self) -> Arc<dyn Node> {
        Arc::new(Published::new(self.log.clone(), Arc::clone(&self.publisher)))
    }

    pub(crate) fn replicate(&self, options: Options) -> Replication {
        Replication::start(self.node(), options).unwrap()
    }

    /// Critical records: each is on disk when this returns, or late.
    pub(crate) fn emit(&mut self, records: u64) {
        for _ in 0..records {
            let begun = Instant::now();
            let leaf = format!("{{\"event\":\"test\",\"number\":{}}}", self.emitted);
            let outcome = self.log.emit(Severity::Critical, leaf.as_bytes());
            assert!(outcome.seq().is_some(), "{outcome:?}");
            self.worst = self.worst.max(begun.elapsed());
            self.emitted += 1;
        }
    }

    /// Entries that are signed, once everything that is durable is.
    pub(crate) fn signed(&self) -> u64 {
        let begun = Instant::now();
        let wanted = self.log.status().records;
        while self.publisher.status().signed_size < wanted {
            assert!(begun.elapsed() < Duration::from_secs(60), "not published: {:?}", self.publisher.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.publisher.status().signed_size
    }

    /// Closes the log, publishes and copies the rest.
    pub(crate) fn close(self, replication: Replication) -> Status {
        assert!(self.log.close(Duration::from_secs(20)).is_durable());
        assert!(self.publisher.finish(Duration::from_secs(20)).caught_up);
        replication.finish(Duration::from_secs(60))
    }
}
