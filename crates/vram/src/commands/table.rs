//! What the daemon says, as people read it.

use serde_json::Value;

use crate::output::{Out, Style, printable, rfc3339, size};

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn seconds(value: &Value, name: &str) -> f64 {
    value.get(name).and_then(Value::as_f64).unwrap_or(0.0)
}

fn style(state: &str) -> Style {
    match state {
        "VERIFIED" | "SEALED" => Style::Green,
        "UNVERIFIED" => Style::Yellow,
        _ => Style::Red,
    }
}

/// One line about a shard.
pub(super) fn shard_line(what: &str, shard: &Value, out: &Out) {
    out.line(format_args!(
        "{} {}  {}  {}  {}",
        out.styled(Style::Green, what),
        printable(text(shard, "shard_id")),
        size(number(shard, "bytes")),
        text(shard, "device"),
        text(shard, "digest")
    ));
    if let Some(approval) = approval(shard) {
        out.line(format_args!("  approved {approval}"));
    }
    if let Some(problem) = not_attachable(shard) {
        out.line(format_args!("  {}", out.styled(Style::Yellow, format_args!("cannot be handed out: {problem}"))));
    }
}

/// Why a shard cannot be handed out, where that is so.
fn not_attachable(shard: &Value) -> Option<String> {
    shard.get("not_attachable").and_then(Value::as_str).map(printable)
}

/// Since when clients can write to a shard's memory, where they can.
fn writable(shard: &Value) -> Option<String> {
    let since = shard.get("writable_since").and_then(Value::as_str)?;
    Some(format!("handed to clients that can write to it since {}", printable(since)))
}

/// What approved a shard, where something did.
fn approval(shard: &Value) -> Option<String> {
    let approval = shard.get("approval").filter(|approval| !approval.is_null())?;
    let by = match approval.get("signer").and_then(Value::as_str) {
        Some(key) => format!("bundle that the key {key} signed"),
        None => text(approval, "manifest").to_owned(),
    };
    let remembered = approval.get("remembered").and_then(Value::as_bool).unwrap_or(false);
    let how = match (number(approval, "sha256_bytes"), remembered) {
        (0, true) => "; remembered, no SHA-256 was computed",
        (0, false) => "",
        _ => "; SHA-256 computed while it was loaded",
    };
    Some(format!("{} by the {} {by}{how}", text(approval, "approved"), text(approval, "form")))
}

/// The whole daemon.
pub(super) fn status(status: &Value, out: &Out) {
    let empty = Value::Null;
    let part = |name: &str| status.get(name).unwrap_or(&empty);
    let ready = status.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let word = if ready { out.styled(Style::Green, "ready") } else { out.styled(Style::Red, "not ready") };
    out.line(format_args!("{}  {word}", out.styled(Style::Bold, printable(text(status, "worker_id")))));
    for reason in part("not_ready").as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.line(format_args!("  {}", printable(reason)));
    }
    if status.get("require_approval").and_then(Value::as_bool).unwrap_or(false) {
        out.line("  rule    only what a manifest approves is loaded");
    }
    for held in part("devices").as_array().into_iter().flatten() {
        device(held, out);
    }
    let (scrub, audit) = (part("scrub"), part("audit"));
    let alive = scrub.get("alive").and_then(Value::as_bool).unwrap_or(false);
    out.line(format_args!(
        "  scrub   {}, every block within {} s, budget {}, {}/s now, {} checked, {} damaged, {} repaired",
        if alive { "at work".to_owned() } else { out.styled(Style::Red, "NOT at work") },
        seconds(scrub, "period_seconds"),
        text(scrub, "budget"),
        size(number(scrub, "throughput_bytes_per_second")),
        crate::jobs::count(number(scrub, "blocks"), "block"),
        number(scrub, "faults"),
        number(scrub, "repairs")
    ));
    if scrub.get("recheck_seconds").is_some_and(|recheck| !recheck.is_null()) {
        out.line(format_args!(
            "  recheck every shard's fingerprint within {} s, {} as expected",
            seconds(scrub, "recheck_seconds"),
            number(scrub, "rechecks")
        ));
    }
    out.line(format_args!(
        "  audit   {}, {}, {} lost, {}",
        text(audit, "health"),
        crate::jobs::count(number(audit, "records"), "record"),
        number(audit, "lost"),
        printable(text(audit, "dir"))
    ));
    if let Some(reason) = audit.get("reason").and_then(Value::as_str) {
        out.line(format_args!("          {}", printable(reason)));
    }
    if let Some(evidence) = audit.get("evidence").filter(|evidence| !evidence.is_null()) {
        signed(evidence, out);
    }
    clients(part("handout"), out);
    let shards: Vec<&Value> = part("shards").as_array().into_iter().flatten().collect();
    let several = part("devices").as_array().is_some_and(|devices| devices.len() > 1);
    let width = shards.iter().map(|shard| text(shard, "shard_id").len()).max().unwrap_or(0).clamp(5, 60);
    if !shards.is_empty() {
        out.line(format_args!(
            "\n{:width$}  {:<11}  {:>10}  {:>8}  {:>6}  {:<13}  {:<9}  last fault",
            "shard", "state", "size", "oldest", "passes", "residency", "write"
        ));
    }
    for shard in shards {
        let state = text(shard, "state");
        out.line(format_args!(
            "{:width$}  {}{}  {:>10}  {:>6.1} s  {:>6}  {:<13}  {:<9}  {}",
            printable(text(shard, "shard_id")),
            out.styled(style(state), state),
            " ".repeat(11_usize.saturating_sub(state.len())),
            size(number(shard, "bytes")),
            seconds(shard, "oldest_age_seconds"),
            number(shard, "passes"),
            text(shard, "residency"),
            text(shard, "protection"),
            fault(shard)
        ));
        if several {
            out.line(format_args!("{:width$}  on {}", "", text(shard, "device")));
        }
        if let Some(approval) = approval(shard) {
            out.line(format_args!("{:width$}  {}", "", out.styled(Style::Dim, format_args!("approved {approval}"))));
        }
        if let Some(writable) = writable(shard) {
            out.line(format_args!("{:width$}  {}", "", out.styled(Style::Yellow, writable)));
        }
        if let Some(problem) = not_attachable(shard) {
            let problem = out.styled(Style::Yellow, format_args!("cannot be handed out: {problem}"));
            out.line(format_args!("{:width$}  {problem}", ""));
        }
    }
    for shard in part("unsealed").as_array().into_iter().flatten() {
        let (id, reason) = (printable(text(shard, "shard_id")), printable(text(shard, "reason")));
        out.line(format_args!("{id:width$}  {}  {reason}", out.styled(Style::Yellow, "unsealed")));
    }
}

/// One device.
fn device(device: &Value, out: &Out) {
    let model = device.get("model").and_then(Value::as_str);
    out.line(format_args!(
        "  device  {}{} {}, {} of {} used",
        text(device, "name"),
        model.map_or_else(String::new, |model| format!(" ({})", printable(model))),
        text(device, "uuid"),
        size(number(device, "used_bytes")),
        size(number(device, "total_bytes"))
    ));
    for (what, word) in [("lost", "LOST"), ("quarantined", "QUARANTINED")] {
        if let Some(reason) = device.get(what).and_then(Value::as_str) {
            out.line(format_args!("          {}: {}", out.styled(Style::Red, word), printable(reason)));
        }
    }
    let alive = device.get("scrub").and_then(|scrub| scrub.get("alive")).and_then(Value::as_bool).unwrap_or(false);
    if !alive {
        out.line(format_args!("          {}", out.styled(Style::Red, "its scrub is NOT at work")));
    }
    match device.get("write_test").and_then(Value::as_str) {
        None | Some("refused") => {}
        Some(outcome) => {
            let why = device.get("write_test_detail").and_then(Value::as_str).unwrap_or("a store went through");
            let why = printable(why);
            out.line(format_args!(
                "          what is sealed is not shown to be read-only: write test {outcome}, {why}"
            ));
        }
    }
}

/// Who has which shards.
fn clients(handout: &Value, out: &Out) {
    let list: Vec<&Value> = handout.get("clients").and_then(Value::as_array).into_iter().flatten().collect();
    if list.is_empty() {
        return;
    }
    let lingering = match number(handout, "lingering_bytes") {
        0 => String::new(),
        bytes => format!(", {} given up and still in their memory", size(bytes)),
    };
    let count = crate::jobs::count(list.len(), "client");
    let leases = crate::jobs::count(number(handout, "leases"), "lease");
    out.line(format_args!("  handed  to {count}, {leases}{lingering}"));
    for client in list {
        let leases = client.get("leases").and_then(Value::as_array).into_iter().flatten();
        let shown = leases.map(|lease| {
            let watched = lease.get("watched").and_then(Value::as_bool).unwrap_or(false);
            let recorded = lease.get("recorded").and_then(Value::as_bool).unwrap_or(true);
            let mark = match (watched, recorded) {
                (false, _) => " (given up)",
                (true, false) => " (its record may be lost)",
                (true, true) => "",
            };
            format!("{}{mark}", printable(text(lease, "shard_id")))
        });
        let shown: Vec<String> = shown.collect();
        out.line(format_args!(
            "          client {}, pid {}, uid {}, for {:.0} s: {}",
            number(client, "client"),
            number(client, "pid"),
            number(client, "uid"),
            seconds(client, "connected_seconds"),
            if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
        ));
    }
}

/// What of the log is signed, and who else has it.
fn signed(evidence: &Value, out: &Out) {
    out.line(format_args!(
        "  signed  {} as {}",
        crate::jobs::count(number(evidence, "signed_records"), "record"),
        printable(text(evidence, "origin"))
    ));
    if let Some(refused) = evidence.get("refused").and_then(Value::as_str) {
        out.line(out.styled(Style::Red, format_args!("          nothing more is signed: {}", printable(refused))));
    } else if let Some(failure) = evidence.get("last_failure").and_then(Value::as_str) {
        out.line(out.styled(Style::Yellow, format_args!("          {}", printable(failure))));
    }
    for (kind, list) in [("replica", "replicas"), ("witness", "witnesses")] {
        for one in evidence.get(list).and_then(Value::as_array).into_iter().flatten() {
            let error = one.get("last_error").and_then(Value::as_str).map(|error| format!("; {}", printable(error)));
            out.line(format_args!(
                "  {kind} {}: {}, {} behind{}",
                printable(text(one, "name")),
                text(one, "state"),
                crate::jobs::count(number(one, "lag_records"), "record"),
                error.unwrap_or_default()
            ));
        }
    }
}

/// One shard.
pub(super) fn shard(shard: &Value, out: &Out) {
    out.line(out.styled(Style::Bold, printable(text(shard, "shard_id"))));
    let state = text(shard, "state");
    out.line(format_args!("  state       {}", out.styled(style(state), state)));
    out.line(format_args!("  model       {}", printable(text(shard, "model_ref"))));
    let tensors = crate::jobs::count(number(shard, "tensors"), "tensor");
    out.line(format_args!("  size        {} bytes, {tensors}", number(shard, "bytes")));
    out.line(format_args!("  digest      {}", text(shard, "digest")));
    out.line(format_args!(
        "  memory      {}, {}, {}",
        text(shard, "device"),
        text(shard, "residency"),
        text(shard, "protection")
    ));
    if let Some(writable) = writable(shard) {
        out.line(format_args!("              {}", out.styled(Style::Yellow, writable)));
    }
    out.line(format_args!("  approved    {}", approval(shard).unwrap_or_else(|| "by no manifest".to_owned())));
    if let Some(problem) = not_attachable(shard) {
        out.line(format_args!("  hand-out    {}", out.styled(Style::Yellow, problem)));
    }
    out.line(format_args!("  sealed      {}", text(shard, "sealed_at")));
    out.line(format_args!(
        "  verified    {}; the oldest block {:.1} s ago, passes: {}",
        text(shard, "last_verified_at"),
        seconds(shard, "oldest_age_seconds"),
        number(shard, "passes")
    ));
    if number(shard, "rechecks") > 0 || number(shard, "recheck_keys") > 0 {
        out.line(format_args!(
            "  rechecks    {}, {} left",
            number(shard, "rechecks"),
            crate::jobs::count(number(shard, "recheck_keys"), "key")
        ));
    }
    out.line(format_args!("  faults      {}, {} repaired", number(shard, "faults"), number(shard, "repairs")));
    out.line(format_args!("  last fault  {}", fault(shard)));
    if let Some(fault) = shard.get("last_fault").filter(|fault| !fault.is_null()) {
        let (from, until) = (number(fault, "suspect_from_ns"), number(fault, "found_ns"));
        out.line(format_args!("  suspect     from {} to {}", rfc3339(from), rfc3339(until)));
    }
}

fn fault(shard: &Value) -> String {
    let Some(fault) = shard.get("last_fault").filter(|fault| !fault.is_null()) else { return "-".to_owned() };
    let tensor = fault.get("tensor").and_then(Value::as_str).map(|name| format!(" in {}", printable(name)));
    let byte = fault.get("first_byte").and_then(Value::as_u64).map(|byte| format!(", byte {byte}"));
    let others = match number(fault, "blocks") {
        0 | 1 => String::new(),
        blocks => format!(", and {} more", blocks.saturating_sub(1)),
    };
    format!(
        "block {}{}{}{others}: {}, {}",
        number(fault, "block"),
        tensor.unwrap_or_default(),
        byte.unwrap_or_default(),
        text(fault, "kind"),
        text(fault, "outcome")
    )
}
