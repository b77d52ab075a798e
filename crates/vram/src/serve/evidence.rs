//! What of the audit log leaves the machine: replicas and witnesses, as the configuration names them, and their metrics.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit_logging::publish::{PruneError, PruneOptions, Pruned, Publisher};
use audit_replication::{
    Location, Observer, Options, Published, RemoteSource, ReplicaOptions, ReplicaStatus, Replication, State, Status,
    StoreOptions, Witness, WitnessOptions, WitnessStatus,
};
use metrics::Unit;
use vram_residency::attest::statement::CheckpointFacts;
use vram_residency::metrics as names;

use super::report::{ElsewhereView, EvidenceView, ProbeView};
use crate::cli::{EvidenceOptions, ReplicaSection};
use crate::commands::audit::held;
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::{Out, printable, rfc3339};
use crate::session::{Cosigners, Trail};

/// How long an attestation waits for a checkpoint that covers its verifications.
const CHECKPOINT: Duration = Duration::from_secs(2);
/// How long the end of the daemon waits for stores and witnesses.
const FINISH: Duration = Duration::from_secs(5);
/// How long a pruning is waited for; it goes on by itself.
const PRUNING: Duration = Duration::from_secs(600);
/// Less is a slip of the pen.
const LEAST_KEPT: Duration = Duration::from_secs(3600);

/// The section `[audit]`, understood: whatever is wrong with it is said before a model is loaded.
#[derive(Debug)]
pub(super) struct Plan {
    replicas: Vec<ReplicaOptions>,
    witnesses: Vec<Witness>,
    cosigners: Cosigners,
    /// How long records are kept; for ever without.
    keep: Option<Duration>,
    /// The replicas, to be read.
    copies: Vec<(String, StoreOptions)>,
}

impl Plan {
    pub(super) fn of(options: &EvidenceOptions) -> Result<Self, Failure> {
        let replicas = options.replicas.iter().map(replica).collect::<Result<Vec<_>, _>>()?;
        let copies = options.replicas.iter().zip(&replicas);
        let copies = copies.map(|(section, options)| (section.url.clone(), options.store.clone())).collect();
        let witness = |section: &crate::cli::WitnessSection| Witness::new(&section.url, &section.vkey);
        let witnesses = options.witnesses.iter().map(witness).collect::<Result<Vec<_>, _>>();
        let witnesses = witnesses.map_err(|error| Failure::usage(format!("[[audit.witnesses]]: {error}")))?;
        let quorum = options.quorum.unwrap_or(witnesses.len());
        if quorum > witnesses.len() || (quorum == 0 && !witnesses.is_empty()) {
            return Err(Failure::usage(format!(
                "[audit] quorum is {quorum} of {0} witnesses, which can never be told: choose 1 to {0}",
                witnesses.len()
            )));
        }
        let keys = witnesses.iter().map(|witness| witness.key().clone()).collect();
        let keep = options.keep.map(|keep| keep.0);
        if keep.is_some_and(|keep| keep < LEAST_KEPT) {
            return Err(Failure::usage("[audit] keep is how long records are kept, an hour at least, such as 400d"));
        }
        Ok(Self { replicas, witnesses, cosigners: Cosigners { keys, quorum }, keep, copies })
    }

    pub(super) fn cosigners(&self) -> &Cosigners {
        &self.cosigners
    }

    pub(super) fn keep(&self) -> Option<Duration> {
        self.keep
    }

    fn is_empty(&self) -> bool {
        self.replicas.is_empty() && self.witnesses.is_empty() && self.keep.is_none()
    }
}

fn replica(section: &ReplicaSection) -> Result<ReplicaOptions, Failure> {
    let location =
        Location::parse(&section.url).map_err(|error| Failure::usage(format!("[[audit.replicas]]: {error}")))?;
    let mut options = ReplicaOptions::new(location);
    options.store = StoreOptions {
        endpoint: section.endpoint.clone(),
        region: section.region.clone(),
        allow_http: section.allow_http,
    };
    options.object_lock = section.object_lock;
    options.require_conditional_create = section.require_conditional_create;
    if let Some(interval) = section.interval {
        options.interval = interval.0;
    }
    Ok(options)
}

/// A signed log, and what of it is known elsewhere.
#[derive(Debug)]
pub(crate) struct Evidence {
    publisher: Arc<Publisher>,
    replication: Option<Replication>,
    /// How long records are kept; for ever without.
    keep: Option<Duration>,
    copies: Vec<(String, StoreOptions)>,
}

impl Evidence {
    /// The newest checkpoint, once it covers so many records or after a while. None where nothing was signed yet.
    pub(super) fn checkpoint(&self, records: u64) -> Option<CheckpointFacts> {
        self.publisher.publish_now();
        let _ = self.publisher.wait_beyond(records.saturating_sub(1), CHECKPOINT);
        let status = self.publisher.status();
        let (origin, size, root) = (status.origin, status.signed_size, status.signed_root.0);
        (size > 0).then_some(CheckpointFacts { origin, size, root })
    }

    /// Starts the copies. None where the log is not signed, which is an error where it should leave the machine.
    pub(super) fn start(plan: &Plan, trail: &Trail, out: &Out) -> Result<Option<Self>, Failure> {
        let (Some(publisher), Some(log)) = (&trail.publisher, trail.trail.log()) else {
            return match (plan.is_empty(), trail.trail.log()) {
                (true, _) => Ok(None),
                (false, None) => {
                    out.warn("warning: nothing of the audit log leaves this machine, because it could not be opened");
                    Ok(None)
                }
                (false, Some(_)) => Err(Failure::new(
                    "audit-key",
                    "replicas, witnesses and pruning are for a signed log, and this one has no key: vram audit keygen makes it",
                )),
            };
        };
        describe();
        let publisher = Arc::clone(publisher);
        let replication = match plan.replicas.is_empty() && plan.witnesses.is_empty() {
            true => None,
            false => {
                let node = Published::new(log.clone(), Arc::clone(&publisher));
                let options = Options {
                    replicas: plan.replicas.clone(),
                    witnesses: WitnessOptions {
                        witnesses: plan.witnesses.clone(),
                        quorum: plan.cosigners.quorum,
                        ..WitnessOptions::default()
                    },
                    observer: Some(Arc::new(Shown)),
                    ..Options::default()
                };
                let started = Replication::start(Arc::new(node), options);
                Some(started.map_err(|error| Failure::new("audit", error.to_string()))?)
            }
        };
        let evidence = Self { publisher, replication, keep: plan.keep, copies: plan.copies.clone() };
        evidence.show();
        Ok(Some(evidence))
    }

    /// Brings the metrics of what is signed up to date; those of replicas and witnesses come by themselves.
    pub(super) fn show(&self) {
        let status = self.publisher.status();
        gauge(names::AUDIT_SIGNED, status.signed_size);
        metrics::gauge!(names::AUDIT_SIGNED_AT).set(seconds(status.last_signed_at));
        gauge(names::AUDIT_PRUNED, status.minimum_index);
        gauge(names::AUDIT_SIGNING_REFUSED, status.refused.is_some().into());
        metrics::counter!(names::AUDIT_SIGN_FAILURES).absolute(status.failures);
        if let Some(status) = self.replication.as_ref().map(Replication::status).filter(|status| status.quorum > 0) {
            gauge(names::AUDIT_COSIGNED, status.cosigned_size);
            metrics::gauge!(names::AUDIT_COSIGNED_AT).set(seconds(status.last_cosigned));
        }
    }

    /// Where the log is published.
    pub(super) fn dir(&self) -> &Path {
        self.publisher.dir()
    }

    pub(super) fn view(&self) -> EvidenceView {
        let signed = self.publisher.status();
        let elsewhere = self.replication.as_ref().map(Replication::status).unwrap_or_default();
        EvidenceView {
            origin: signed.origin,
            vkey: signed.vkey,
            signed_records: signed.signed_size,
            pruned_records: signed.minimum_index,
            pruned_in_segments: signed.pruned_in_segments,
            keep_seconds: self.keep.map(|keep| keep.as_secs()),
            signed_at: signed.last_signed_at.map(moment),
            refused: signed.refused.map(|refusal| refusal.to_string()),
            last_failure: signed.last_failure,
            replicas: elsewhere.replicas.into_iter().map(view_of_replica).collect(),
            witnesses: elsewhere.witnesses.into_iter().map(view_of_witness).collect(),
            quorum: elsewhere.quorum,
            cosigned_records: signed.cosigned_size,
            cosigned_at: elsewhere.last_cosigned.map(moment),
        }
    }

    /// Gives up the records below this number, as far as every replica has them.
    pub(super) fn prune(&self, before: u64, keep: Duration) -> Result<Pruned, PruneError> {
        let replicas = self.replication.as_ref().map(|replication| replication.status().replicas).unwrap_or_default();
        let mut limit = replicas.iter().map(|replica| replica.size).min().unwrap_or(u64::MAX);
        if !self.copies.is_empty() {
            let look = PruneOptions { limit, dry_run: true, ..PruneOptions::before(before) };
            let end = self.publisher.prune(look, PRUNING)?.minimum_index;
            for (url, store) in &self.copies {
                // Whoever says that it has them may have lost them since.
                let copy = RemoteSource::open(url, store).map_err(|error| PruneError::Io(error.to_string()))?;
                let held = held(&copy, self.publisher.dir(), end);
                limit = limit.min(held.map_err(|error| PruneError::Io(error.to_string()))?);
            }
        }
        self.publisher.prune(PruneOptions { limit, keep: Some(keep), ..PruneOptions::before(before) }, PRUNING)
    }

    /// To be called after the log was closed and its last checkpoint published. What does not get away in time gets away
    /// at the next start.
    pub(super) fn finish(&self, out: &Out) {
        let Some(replication) = &self.replication else { return };
        let Status { replicas, witnesses, .. } = replication.finish(FINISH);
        let behind = replicas.iter().filter(|replica| replica.lag > 0).map(|replica| (&replica.url, replica.lag));
        let unseen = witnesses.iter().filter(|witness| witness.lag > 0).map(|witness| (&witness.name, witness.lag));
        for (name, lag) in behind.chain(unseen) {
            let lag = count(lag, "record");
            out.warn(format_args!("warning: {} does not know the last {lag} yet", printable(name)));
        }
    }
}

impl EvidenceView {
    /// One line for people.
    pub(super) fn sum_up(&self) -> String {
        format!(
            "signed as {}; {}, {}",
            printable(&self.origin),
            count(self.replicas.len(), "replica"),
            match self.witnesses.len() {
                0 => String::from("no witness"),
                1 => String::from("1 witness"),
                many => format!("{many} witnesses (quorum {})", self.quorum),
            }
        )
    }
}

fn view_of_replica(status: ReplicaStatus) -> ElsewhereView {
    ElsewhereView {
        name: status.url,
        state: status.state.as_str(),
        records: status.size,
        lag_records: status.lag,
        last_success: status.last_success.map(moment),
        failures: status.failures,
        last_error: status.last_error,
        probe: status.probe.map(|probe| ProbeView {
            conditional_create: probe.conditional_create,
            winners: probe.winners,
            object_lock: probe.object_lock.as_str(),
        }),
    }
}

fn view_of_witness(status: WitnessStatus) -> ElsewhereView {
    ElsewhereView {
        name: status.name,
        state: status.state.as_str(),
        records: status.size,
        lag_records: status.lag,
        last_success: status.last_success.map(moment),
        failures: status.failures,
        last_error: status.last_error,
        probe: None,
    }
}

fn moment(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// What replicas and witnesses report becomes metrics.
struct Shown;

impl Observer for Shown {
    fn replica(&self, status: &ReplicaStatus) {
        let name = || status.url.clone();
        metrics::gauge!(names::AUDIT_REPLICA_LAG, "replica" => name()).set(number(status.lag));
        metrics::gauge!(names::AUDIT_REPLICA_AT, "replica" => name()).set(seconds(status.last_success));
        metrics::counter!(names::AUDIT_REPLICA_FAILURES, "replica" => name()).absolute(status.failures);
        metrics::counter!(names::AUDIT_REPLICA_BYTES, "replica" => name()).absolute(status.bytes);
        for state in State::ALL {
            metrics::gauge!(names::AUDIT_REPLICA_STATE, "replica" => name(), "state" => state.as_str())
                .set(number((state == status.state).into()));
        }
    }

    fn witness(&self, status: &WitnessStatus) {
        let name = || status.name.clone();
        metrics::gauge!(names::AUDIT_WITNESS_LAG, "witness" => name()).set(number(status.lag));
        metrics::gauge!(names::AUDIT_WITNESS_AT, "witness" => name()).set(seconds(status.last_success));
        metrics::counter!(names::AUDIT_WITNESS_FAILURES, "witness" => name()).absolute(status.failures);
        for state in State::ALL {
            metrics::gauge!(names::AUDIT_WITNESS_STATE, "witness" => name(), "state" => state.as_str())
                .set(number((state == status.state).into()));
        }
    }

    fn cosigned(&self, size: u64, at: SystemTime) {
        gauge(names::AUDIT_COSIGNED, size);
        metrics::gauge!(names::AUDIT_COSIGNED_AT).set(seconds(Some(at)));
    }
}

fn gauge(name: &'static str, value: u64) {
    metrics::gauge!(name).set(number(value));
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64; 2^53 records are not reached")]
fn number(value: u64) -> f64 {
    value as f64
}

/// Seconds since 1970; 0 for never.
fn seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}

fn describe() {
    let gauge = |name, unit, help| metrics::describe_gauge!(name, unit, help);
    let counter = |name, unit, help| metrics::describe_counter!(name, unit, help);
    gauge(names::AUDIT_SIGNED, Unit::Count, "Records that the newest signed checkpoint covers.");
    gauge(names::AUDIT_SIGNED_AT, Unit::Seconds, "When the newest checkpoint was signed, in seconds since 1970.");
    gauge(names::AUDIT_SIGNING_REFUSED, Unit::Count, "1 where the log contradicts what was signed of it.");
    gauge(names::AUDIT_PRUNED, Unit::Count, "Published records that were given up, as the configuration says.");
    counter(names::AUDIT_PRUNE_FAILURES, Unit::Count, "Attempts to give up old records that failed.");
    // There from the start, so that the first failure is an increase.
    metrics::counter!(names::AUDIT_PRUNE_FAILURES).increment(0);
    counter(names::AUDIT_SIGN_FAILURES, Unit::Count, "Attempts to publish the log that failed.");
    gauge(names::AUDIT_REPLICA_LAG, Unit::Count, "Signed records that a replica does not have.");
    gauge(names::AUDIT_REPLICA_AT, Unit::Seconds, "When a replica last had everything, in seconds since 1970.");
    counter(names::AUDIT_REPLICA_FAILURES, Unit::Count, "Attempts to write to a replica that failed.");
    counter(names::AUDIT_REPLICA_BYTES, Unit::Bytes, "Bytes written to a replica.");
    gauge(names::AUDIT_REPLICA_STATE, Unit::Count, "1 for the state that a replica is in.");
    gauge(names::AUDIT_WITNESS_LAG, Unit::Count, "Signed records that a witness has not cosigned.");
    gauge(names::AUDIT_WITNESS_AT, Unit::Seconds, "When a witness last cosigned, in seconds since 1970.");
    counter(names::AUDIT_WITNESS_FAILURES, Unit::Count, "Questions to a witness that brought no cosignature.");
    gauge(names::AUDIT_WITNESS_STATE, Unit::Count, "1 for the state that a witness is in.");
    gauge(names::AUDIT_COSIGNED, Unit::Count, "Records that the newest sufficiently cosigned checkpoint covers.");
    gauge(names::AUDIT_COSIGNED_AT, Unit::Seconds, "When enough witnesses last cosigned, in seconds since 1970.");
}
