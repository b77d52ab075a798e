// The rows of the table of shards.

class Row {
  constructor(shard) {
    this.element = make("tr", undefined, { role: "row" });
    this.element.append(make("th", shard.shard_id, { role: "rowheader", scope: "row" }),
      ...["State", "Oldest block", "Size", "Memory", "Passes", "Faults", "Repairs", "Digest"].map((label) => cell(label)));
    const details = make("details"), digest = bare(shard.digest);
    details.append(make("summary", `${digest.slice(0, 12)}…`), make("code", shard.digest));
    this.element.lastChild.append(details);
  }

  update(shard) {
    this.shard = shard;
    this.show(false);
  }

  show(gone) {
    const { shard } = this, [, state, oldest, size, memory, passes, faults, repairs] = this.element.children;
    const good = IN_ORDER.includes(shard.state), late = shard.state === "UNVERIFIED";
    put(state, gone ? `was ${clean(shard.state)}` : `${SIGNS[good ? "good" : late ? "warn" : "bad"]} ${clean(shard.state)}`);
    state.className = gone ? "old" : good ? "good-cell" : late ? "warn-cell" : "bad-cell";
    put(oldest, gone ? "not known" : `${duration(shard.oldest_age_seconds)} ago`);
    put(size, bytes(shard.bytes));
    const written = shard.writable_since ? `; clients can write since ${clean(shard.writable_since)}` : "";
    const where = status.devices.length > 1 ? `${clean(shard.device)}: ` : "";
    put(memory, `${where}${clean(shard.residency)}, ${clean(shard.protection)}${written}`);
    put(passes, shard.passes.toLocaleString("en"));
    put(faults, String(shard.faults));
    put(repairs, String(shard.repairs));
  }
}

// A shard whose seal was given up: nobody checks it, so nothing else is known of it.
class UnsealedRow {
  constructor(shard) {
    this.element = make("tr", undefined, { role: "row" });
    this.element.append(make("th", shard.shard_id, { role: "rowheader", scope: "row" }),
      ...["State", "Oldest block", "Size", "Memory", "Passes", "Faults", "Repairs", "Digest"].map((label) => cell(label, "–")));
  }

  update(shard) {
    this.shard = shard;
    this.show(false);
  }

  show(gone) {
    const { shard } = this, [, state, , size, memory] = this.element.children;
    put(state, gone ? "was UNSEALED" : `${SIGNS.warn} UNSEALED`);
    state.className = gone ? "old" : "warn-cell";
    put(size, shard.bytes ? bytes(shard.bytes) : "–");
    put(memory, status.devices.length > 1 ? clean(shard.device) : "–");
  }
}
