//! `vram audit subject`: how the log names a user.

use serde::Serialize;
use vram_residency::actor::Actor;

use crate::cli::AuditSubject;
use crate::exit::Failure;
use crate::output::Out;
use crate::state;

#[derive(Serialize)]
struct Subject {
    actor: Actor,
}

/// Prints the commitment to a user. Makes no key: without the one that was in use, nothing can be found any more.
pub(super) fn run(options: &AuditSubject, out: &Out) -> Result<(), Failure> {
    let key = state::subject_key(false).map_err(|failure| {
        let message = format!(
            "{}; without the key that the daemon used, who gave an order is erased from the log for good",
            failure.message
        );
        Failure { message, ..failure }
    })?;
    let actor = key.user(options.uid);
    out.line(actor);
    out.object(&Subject { actor });
    Ok(())
}
