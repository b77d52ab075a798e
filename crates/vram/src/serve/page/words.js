
"use strict";
// What is said, and how: from what the daemon answers to a verdict in plain words. Nothing here touches the page.

// Text from elsewhere, without what would steer how it is shown, and not endless.
function clean(value, most = 200) {
  const text = String(value).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "\ufffd");
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

// Between a number and its unit: no line ends there.
const NEAR = "\u00a0";

function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)}${NEAR}s`;
  if (s < 3600) return `${Math.floor(s / 60)}${NEAR}min ${Math.floor(s % 60)}${NEAR}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}${NEAR}h ${Math.floor(s / 60 % 60)}${NEAR}min`;
  return `${Math.floor(s / 86400)}${NEAR}d ${Math.floor(s / 3600 % 24)}${NEAR}h`;
}

function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0, size = count;
  while (size >= 1024 && unit < 4) { size /= 1024; unit += 1; }
  return unit === 0 ? `${count}${NEAR}bytes` : `${size.toFixed(1)}${NEAR}${units[unit]}`;
}

function counted(count, thing) {
  return `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
}

// The time of the day as in the log, with the day where it is another one.
function clock(moment) {
  const time = new Date(moment);
  if (Number.isNaN(time.getTime())) return "an unknown time";
  const [day, rest] = time.toISOString().split("T"), hour = `${rest.slice(0, 8)}${NEAR}UTC`;
  return day === new Date().toISOString().slice(0, 10) ? hour : `${day}${NEAR}${hour}`;
}

// From one moment to another, with one zone for both.
function span(from, to) {
  return `from ${clock(from).replace(/.UTC$/, "")} to ${clock(to)}`;
}

const SIGNS = { good: "✓", warn: "!", bad: "✕", gone: "?", asking: "…" };
const RANKS = { bad: 0, warn: 1, note: 2 };
const IN_ORDER = ["SEALED", "VERIFIED"];

// The blocks of a fault, and the tensor of the first.
function places(fault) {
  const more = fault.blocks > 1 ? ` and ${fault.blocks - 1} more` : "";
  return `${fault.block}${fault.tensor ? ` in ${clean(fault.tensor)}` : ""}${more}`;
}

// What is wrong with a shard, if something is.
function ofShard(shard, status) {
  const id = clean(shard.shard_id), fault = shard.last_fault;
  const where = fault ? `Block ${places(fault)}: ${clean(fault.kind)}.` : "";
  // Where damage is only logged, the bytes went on being lent.
  const window = !fault ? "" : shard.state === "SUSPECT" && status.on_failure === "log"
    ? ` Answers given since ${clock(fault.suspect_from_ns / 1e6)} are suspect.`
    : ` Answers given ${span(fault.suspect_from_ns / 1e6, fault.found_ns / 1e6)} are suspect.`;
  const since = fault ? fault.found_ns / 1e6 : shard.state_since;
  const damaged = (head, detail, remedy) =>
    ({ level: "bad", head, detail: detail + where + window, since, remedy, runbook: "VramIntegrityFailure" });
  switch (shard.state) {
    case "SUSPECT":
      return status.on_failure === "log"
        ? damaged(`Damaged and in use: ${id}`, "The policy only logs. ", `Take this instance out of service, then: \`vram repair ${id}\``)
        : damaged(`Damaged? ${id}`, "A check failed and is being confirmed. ", "Wait a moment: the policy acts by itself.");
    case "QUARANTINED":
      return damaged(`Damaged: ${id}`, "It is quarantined: its bytes are not lent to anybody. ",
        `Take this instance out of service if that has not happened, then: \`vram repair ${id}\``);
    case "REPAIRING":
      return damaged(`Being repaired: ${id}`, "Its bytes are not lent to anybody. ", "Wait until the repair is through.");
    case "FAILED":
      return damaged(`Damaged, and the repair failed: ${id}`, "Its bytes are not lent to anybody. ",
        `Fetch the file again and check its hash, then: \`vram release ${id}\` and \`vram load FILE\``);
    case "UNVERIFIED":
      return { level: "warn", head: `Nothing can be said about ${id}`,
        detail: "Its oldest block was not checked for two periods, a check could not be carried out, or a record is lost. " +
          "It is not known to be damaged, and not known to be whole.",
        since: shard.state_since, remedy: `See whether the audit log below is good; \`vram verify ${id}\` checks all of it now.`,
        runbook: "VramVerificationStale" };
    default:
      return IN_ORDER.includes(shard.state) ? null
        : { level: "warn", head: `${id} is ${clean(shard.state)}`, detail: "", since: shard.state_since,
            remedy: `\`vram status ${id}\` tells more.`, runbook: "VramVerificationStale" };
  }
}

// What is wrong with the audit log.
function ofAudit(audit, status) {
  const found = [];
  const say = (level, head, detail, remedy, runbook) => found.push({ level, head, detail, since: null, remedy, runbook });
  if (audit.health === "failing") {
    say("bad", "Nothing is recorded", `The audit log fails: ${clean(audit.reason || "no reason given")}.`,
      "Usually the disk is full or read-only: make room, or repair it. The log resumes by itself.",
      "VramAuditFailureRate");
  } else if (audit.health !== "good") {
    say("warn", "Nothing is recorded", "The audit log is off.", "Start the daemon with a log.", "VramAuditFailureRate");
  }
  const evidence = audit.evidence;
  if (evidence) {
    const elsewhere = [...evidence.replicas, ...evidence.witnesses];
    const denied = elsewhere.filter((place) => ["conflict", "rollback"].includes(place.state));
    if (evidence.refused || denied.length) {
      say("bad", "The audit log contradicts what was signed of it",
        clean(evidence.refused || `${denied[0].name}: ${denied[0].last_error || denied[0].state}`, 400),
        "Start nothing anew: copy the log's directory, the key and its .state file away as evidence.",
        "VramAuditContradicted");
    }
    const behind = (places, what, name) => {
      const late = places.filter((place) => ["failing", "refused"].includes(place.state));
      if (late.length) {
        say("warn", `${what} ${clean(late[0].name)} is ${late[0].state}`,
          clean(late[0].last_error || "", 400), "It is tried again by itself; see what it says.", name);
      }
    };
    behind(evidence.replicas, "The replica", "VramAuditReplicaBehind");
    behind(evidence.witnesses, "The witness", "VramAuditWitnessBehind");
    const idle = (Date.parse(status.time) - Date.parse(audit.last_record_at)) / 1000;
    if (!evidence.refused && audit.records > evidence.signed_records && idle > 60) {
      say("warn", "Records are not signed", "Records of the audit log wait for a signature for more than a minute.", "See the daemon's output, and the disk.",
        "VramAuditCheckpointStale");
    }
  }
  if (audit.lost > 0 && audit.health === "good") {
    say("note", `${counted(audit.lost, "record")} of the audit log lost since the start`, "", "", "");
  }
  return found;
}

// A device and how much of it is used.
function ofDevice(device) {
  const model = device.model ? ` (${clean(device.model)})` : "";
  return `${clean(device.name)}${model} ${clean(device.uuid)}: ${bytes(device.used_bytes)} of ${bytes(device.total_bytes)} used, ` +
    `${bytes(device.available_bytes)} free. Checked: ${bytes(device.scrub.throughput_bytes_per_second)} a second.`;
}

// What is checked, and how often.
function ofChecks({ scrub, devices }) {
  const recheck = scrub.recheck_seconds === null ? ""
    : ` Every shard's fingerprint within ${duration(scrub.recheck_seconds)} as well, as far as the budget allows: ` +
      `${scrub.rechecks.toLocaleString("en")} as expected.`;
  return `Every block within ${duration(scrub.period_seconds)}, at a budget of ${clean(scrub.budget)}${devices.length > 1 ? " on each device" : ""}.${recheck}`;
}

// Everything that is to be said, the worst first. Without anything bad or doubtful, all is well.
function judge(status, records) {
  const found = [];
  const add = (level, head, detail, since, remedy, runbook) => found.push({ level, head, detail, since, remedy, runbook });
  for (const device of status.devices) {
    const name = clean(device.name);
    if (device.lost) {
      add("bad", `The GPU ${name} is lost`, `${clean(device.lost, 400)}. Nothing is known of what it holds.`, status.ready_since,
        "Take this instance out of service and restart the daemon; where that fails, reset the GPU.", "VramDeviceLost");
    }
    if (device.quarantined) {
      add("bad", `The device ${name} is quarantined`, `${clean(device.quarantined, 400)}. Nothing on it is lent to anybody.`,
        status.ready_since, "Move the load to another machine, keep the log, test the memory.", "VramDeviceQuarantined");
    }
  }
  found.push(...status.shards.map((shard) => ofShard(shard, status)).filter(Boolean));
  for (const device of status.devices.filter((one) => !one.scrub.alive)) {
    add("bad", `The continuous check of ${clean(device.name)} does not move`, "Nobody looks at the weights there.", status.ready_since,
      "Keep the daemon's output and restart the daemon.", "VramScrubDead");
  }
  if (status.scrub.stop_requested) {
    add("bad", "The daemon is about to stop", clean(status.scrub.stop_requested, 400), null,
      "The policy stop-worker ended it: see which block is damaged.", "VramIntegrityFailure");
  }
  found.push(...ofAudit(status.audit, status));
  for (const shard of status.unsealed) {
    const id = clean(shard.shard_id);
    add("warn", `${id} is not sealed`, `It was unsealed: ${clean(shard.reason)}.`, status.ready_since,
      `\`vram reseal ${id}\`, or \`vram release ${id}\``, "VramVerificationStale");
  }
  if (status.shards.length + status.unsealed.length === 0) {
    add("warn", "No shard is resident", "There is nothing to check.", status.ready_since, "`vram load FILE`", "VramVerificationStale");
  }
  if (status.ready !== true && !found.some((finding) => finding.level !== "note")) {
    add("warn", "Not ready", clean(status.not_ready.join("; "), 400), status.ready_since,
      "`vram status` tells more.", "VramVerificationStale");
  }
  for (const shard of status.shards) {
    const fault = shard.last_fault;
    if (!fault || fault.outcome !== "repaired" || !IN_ORDER.includes(shard.state)) continue;
    // The bytes were lent until it was found, or, where damage is only logged, until it was repaired.
    const record = records.findLast((one) => one.event === "BlockRepaired" && one.shard_id === shard.shard_id && one.block === fault.block &&
      one.time_ns >= fault.found_ns);
    const lentUntil = status.on_failure !== "log" ? fault.found_ns / 1e6 : record ? record.time_ns / 1e6 : Date.parse(shard.state_since);
    add("note", `Repaired: block ${places(fault)} of ${clean(shard.shard_id)}, ` +
      `found at ${clock(fault.found_ns / 1e6)} (${clean(fault.kind)})` +
      (record && record.seq !== null ? `; record ${record.seq} of the audit log` : "") +
      `. Answers given ${span(fault.suspect_from_ns / 1e6, lentUntil)} were suspect.`, "", null, "", "VramRepairing");
  }
  found.sort((a, b) => RANKS[a.level] - RANKS[b.level]);
  const [worst] = found;
  if (worst && worst.level !== "note") return { ...worst, others: found.slice(1) };
  const oldest = Math.max(...status.shards.map((shard) => shard.oldest_age_seconds));
  // A fault that was repaired at once may have been too short for the daemon to call itself not ready.
  const since = Math.max(Date.parse(status.ready_since), ...status.shards.map((shard) => shard.last_fault ? shard.last_fault.found_ns / 1e6 : 0));
  return { level: "good", head: "All is well", since, remedy: "", runbook: "", others: found,
    detail: `${counted(status.shards.length, "shard")}, every block as sealed; the oldest was checked ` +
      `${duration(oldest)} ago (a period is ${duration(status.scrub.period_seconds)}).` };
}

// What is said until the daemon answers.
function asking(at) {
  return { level: "asking", head: "Asking the daemon …", detail: at ? `What is shown below is from ${clock(at)}.` : "",
    since: null, remedy: "", runbook: "", others: [] };
}

// What is said where the daemon does not answer.
function lost(why, at) {
  return { level: "gone", head: "No contact with the daemon", others: [], since: at,
    detail: `${why} ${at ? `What is shown below is from ${clock(at)} and may be wrong by now.` : "Nothing is known."}`,
    remedy: "See whether it runs: `systemctl status vram`, or `kubectl describe pod`. This page goes on asking.",
    runbook: "VramDaemonDown" };
}

// One line about a record.
function tell(record) {
  const parts = [];
  const block = record.block ?? record.first_block;
  if (block !== undefined && block !== null) parts.push(`block ${block}`);
  if (record.tensor) parts.push(clean(record.tensor));
  if (record.client !== undefined) parts.push(`client ${record.client}`);
  if (record.byte !== undefined) parts.push(`byte ${record.byte}, bit ${record.bit}`);
  for (const name of ["damage", "command", "reason", "violation", "action", "version"]) {
    if (typeof record[name] === "string") parts.push(`${name === "reason" || name === "damage" ? "" : `${name} `}${clean(record[name])}`);
  }
  if (record.event === "AttestationMade") parts.push(`${counted(record.shards, "shard")} attested; envelope ${clean(record.envelope)}`);
  if (record.event === "ScrubPassed") parts.push(`${counted(record.blocks, "block")} as sealed, in ${duration(record.duration_ns / 1e9)}`);
  else if (record.bytes !== undefined) parts.push(bytes(record.bytes));
  if (record.keys_left !== undefined) parts.push(`${counted(record.keys_left, "key")} left`);
  return parts.join("; ");
}
