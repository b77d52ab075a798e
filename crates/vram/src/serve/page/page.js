
// What the page does: asks, listens, shows. Everything shown is text.

const POLL_MS = 2000, SOON_MS = 100, PATIENCE_MS = 4000, STALE_MS = 6000, EVENTS_SHOWN = 25, CLIENTS_SHOWN = 200;
const byId = (id) => document.getElementById(id);
const maps = new Map(), rows = new Map(), unsealed = new Map();
let status = null, askedAt = 0, seenAt = 0, seenOn = 0, failures = 0, why = "", ahead = 0;
let records = [], runbook = null, source = null, sourceWaits = 1000, pollTimer = 0, polling = false, again = false, listening = false;
const hurried = new Set();

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A text in which commands stand between backticks.
function spell(element, text) {
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren(...text.split("`").map((part, at) => at % 2 ? make("code", part) : part));
}

function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function cell(label, text, attributes = {}) {
  return make("td", text, { role: "cell", "data-label": label, ...attributes });
}

const bare = (what) => what.replace(/^blake3:/, "");
// The time of the day by the daemon's clock.
const now = () => Date.now() + ahead;
const ago = (moment) => duration((now() - Date.parse(moment)) / 1000);

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error(`It answers with HTTP ${answer.status}.`);
  return answer;
}

// --- How the daemon is -----------------------------------------------------------------------------------------------

// One question at a time: answers must not overtake each other.
async function poll() {
  clearTimeout(pollTimer);
  if (polling) { again = true; return; }
  [polling, askedAt] = [true, performance.now()];
  try {
    const next = await (await ask("/v1/status")).json();
    if (status && next.time === status.time) throw new Error("The same answer came twice: something between keeps old ones.");
    [status, ahead] = [next, Date.parse(next.time) - Date.now()];
    if (!runbook) ask("/runbook.md").then((answer) => answer.text()).then((text) => { runbook = text; showRunbook(); }, () => {});
    showStatus();
    // Only what could also be shown was heard.
    [seenAt, seenOn, failures, why] = [performance.now(), Date.now(), 0, ""];
    if (!source && !document.hidden) listen();
  } catch (error) {
    failures += 1;
    why = error instanceof TypeError ? "It does not answer." : error.name === "TimeoutError"
      ? `It did not answer within ${PATIENCE_MS / 1000} s.` : clean(error.message);
  }
  [polling, pollTimer] = [false, setTimeout(poll, again ? SOON_MS : failures ? POLL_MS / 2 : POLL_MS)];
  again = false;
  showVerdict();
}

// Both clocks: one stops while the machine sleeps, the other can be set.
function isLost() {
  if (!status) return failures > 0;
  return failures > 1 || performance.now() - seenAt > STALE_MS || Math.abs(Date.now() - seenOn) > STALE_MS;
}

function verdict() {
  // After a sleep, or in a tab that was hidden, nobody has asked for a while: that is not the daemon's silence.
  if (failures === 0 && polling && performance.now() - askedAt < PATIENCE_MS && (!status || isLost())) return asking(status && status.time);
  if (isLost()) return lost(why || "It has not answered for a while.", status && Date.parse(status.time));
  return status ? judge(status, records) : asking(null);
}

function showVerdict() {
  if (status && isLost() && failures === 0 && !polling) poll();
  const said = verdict(), gone = isLost();
  document.body.classList.toggle("stale", gone);
  byId("verdict").className = `verdict ${said.level}`;
  put(byId("sign"), SIGNS[said.level]);
  put(byId("headline"), said.head);
  // What ticks is outside of what is read aloud.
  put(byId("detail"), said.level === "good" ? "" : said.detail);
  const since = said.since ? `Since ${clock(said.since)} (${ago(new Date(said.since).toISOString())}).` : "";
  put(byId("since"), said.level === "good" ? `${said.detail} ${since}` : since);
  byId("todo").hidden = !said.remedy;
  spell(byId("remedy"), said.remedy && !said.remedy.endsWith(".") ? `${said.remedy}.` : said.remedy || "");
  byId("more").dataset.name = said.runbook || "";
  byId("more").hidden = !said.runbook;
  list(byId("others"), said.others.map((one) => [one.head, one.detail].filter(Boolean).join(". ")));
  const title = `${SIGNS[said.level]} ${said.head} · vram`;
  if (document.title !== title) document.title = title;
  put(byId("contact"), status
    ? `${gone ? "Last heard of" : "Heard of"} the daemon ${gone ? `at ${clock(status.time)}` : "just now"}; it is asked every ${POLL_MS / 1000}${NEAR}s.`
    : "Nothing was heard of the daemon yet.");
  byId("contact").classList.toggle("old", gone);
  showStream();
  for (const map of maps.values()) map.tick(gone);
  if (status) for (const row of [...rows.values(), ...unsealed.values()]) row.show(gone);
  if (said.runbook !== byId("runbook").dataset.name && !byId("runbook").hidden) showRunbook();
}

function showRunbook() {
  const name = byId("more").dataset.name;
  const section = (runbook || "").split("\n## ").find((part) => part.startsWith(`${name}\n`));
  byId("runbook").dataset.name = name;
  put(byId("runbook-title"), section ? `Runbook: ${name}` : "Runbook");
  put(byId("runbook-text"), section ? section.slice(name.length).trim() : "It is docs/runbook.md of vram; the daemon does not answer for it now.");
}

byId("more").addEventListener("click", () => { byId("runbook").hidden = false; showRunbook(); });

// --- Shards and devices ----------------------------------------------------------------------------------------------

// Brings a table of things with names up to date without making it anew.
function keep(known, list, parent, create) {
  for (const [id, one] of known) {
    if (!list.some((item) => item.shard_id === id)) { one.element.remove(); known.delete(id); }
  }
  list.forEach((item, at) => {
    let one = known.get(item.shard_id);
    if (!one) { one = create(item); known.set(item.shard_id, one); }
    if (parent.children[at] !== one.element) parent.insertBefore(one.element, parent.children[at] || null);
    one.update(item);
  });
}

// Lines of text, made anew where one is another.
function list(element, lines) {
  if (element.dataset.shown === JSON.stringify(lines)) return;
  element.dataset.shown = JSON.stringify(lines);
  element.replaceChildren(...lines.map((text) => make("li", text)));
}

function showStatus() {
  put(byId("worker"), `worker ${clean(status.worker_id)}, version ${clean(status.version)}`);
  keep(rows, status.shards, byId("shard-rows"), (shard) => new Row(shard));
  keep(unsealed, status.unsealed, byId("unsealed-rows"), (shard) => new UnsealedRow(shard));
  byId("unsealed-rows").hidden = status.unsealed.length === 0;
  byId("no-shards").hidden = status.shards.length + status.unsealed.length > 0;
  list(byId("devices"), status.devices.map(ofDevice));
  put(byId("checks"), ofChecks(status));
  keep(maps, status.shards, byId("maps"), (shard) => new Figure(shard));
  showClients(status.handout);
  showAudit(status.audit);
  put(byId("about"), "The page asks only this daemon, and can only look. What it shows is what the daemon says of itself; " +
    "what that proves is in docs/what-a-seal-proves.md.");
}

// --- Maps ------------------------------------------------------------------------------------------------------------

class Figure {
  constructor(shard) {
    this.id = shard.shard_id;
    this.element = make("section", undefined, { class: "map", "aria-label": `Blocks of ${clean(shard.shard_id)}` });
    const frame = make("div");
    this.canvas = make("canvas", undefined, { class: "blocks", role: "img" });
    const pick = make("div", undefined, { class: "pick" }), label = make("label", "Block ");
    this.slider = make("input", undefined, { type: "range", min: 0, max: 0, value: 0, step: 1 });
    label.append(this.slider);
    frame.append(this.canvas);
    this.summary = make("p");
    this.readout = make("p", "Point at a block, tap it, or move here with the arrow keys, and read what it holds.", { class: "readout" });
    this.marked = make("ul", undefined, { "aria-label": "Marked blocks" });
    pick.append(label, this.readout);
    this.element.append(make("h3", clean(shard.shard_id)), this.summary, frame, pick, this.marked);
    this.map = new BlockMap(this.canvas, (block) => this.pick(block));
    this.slider.addEventListener("input", () => { this.map.setCursor(this.slider.valueAsNumber); this.pick(this.slider.valueAsNumber); });
    this.data = null;
    this.picked = -1;
    this.found = null;
    this.askedAt = -Infinity;
    this.gotAt = -Infinity;
  }

  update(shard) {
    this.shard = shard;
    this.asOf = Date.parse(status.time);
    // Less often for long periods, and for many shards.
    this.pause = Math.max(Math.min(5000, Math.max(POLL_MS / 2, status.scrub.period_seconds * 100)), 100 * maps.size);
    if (this.data) this.settle();
    if (performance.now() - this.askedAt >= this.pause) this.load();
    if (this.picked >= 0) this.lookUp(this.picked);
  }

  // With the next status the map is asked for as well, whenever it was before.
  expire() {
    this.askedAt = -Infinity;
  }

  async load() {
    this.askedAt = performance.now();
    try {
      const data = await (await ask(`/v1/shards/${encodeURIComponent(this.id)}/blocks`)).json();
      const text = atob(data.ages), told = new Uint8Array(text.length);
      for (let at = 0; at < text.length; at += 1) told[at] = text.charCodeAt(at);
      [this.data, this.told, this.gotAt] = [data, told, performance.now()];
      this.settle();
    } catch {
      // It stays as it was; tick() says when that is too long.
    }
  }

  // The map and the status are two answers, and one may be older. A status that is the newer one bounds every age; and no
  // block is called late while the status knows of none: where the map is the newer one, the status is asked first.
  settle() {
    const { data, told, shard } = this, oldest = shard.oldest_age_seconds, newer = Date.parse(data.time) > this.asOf;
    const most = Math.min(oldest < status.scrub.period_seconds ? LATE - 1 : 255, newer ? 255 : Math.ceil(oldest / data.unit_seconds));
    const above = told.some((age) => age > most);
    if (above && newer) hurry(this.id);
    this.ages = above ? told.map((age) => Math.min(age, most)) : told;
    this.map.update(this.ages, data.marks);
    this.show();
  }

  show() {
    const { data, ages } = this, count = [0, 0, 0];
    for (const age of ages) count[age < LATE ? 0 : age < OVERDUE ? 1 : 2] += 1;
    const damaged = data.marks.filter((mark) => mark.state !== "repaired").length, repaired = data.marks.length - damaged;
    const parts = [`${counted(data.blocks, "block")} of ${bytes(data.block_bytes)}`, `${count[0].toLocaleString("en")} checked within the period`];
    if (count[1]) parts.push(`${count[1].toLocaleString("en")} late`);
    if (count[2]) parts.push(`${count[2].toLocaleString("en")} not checked for two periods`);
    if (damaged) parts.push(`${damaged} damaged`);
    if (repaired) parts.push(`${repaired} repaired`);
    if (this.map.plan && this.map.plan.per > 1) parts.push(`each cell shows the worst of ${this.map.plan.per}`);
    this.text = `${parts.join("; ")}.`;
    put(this.summary, this.text);
    this.canvas.setAttribute("aria-label", `Map of ${clean(this.id)}: ${this.text}`);
    this.slider.max = Math.max(0, ages.length - 1);
    const lines = data.marks.map((mark) => `Block ${mark.block}: ${mark.state === "failed" ? "repair failed" : mark.state} at ${clock(mark.time)}` +
      (mark.seq === null ? ", not on record" : `, record ${mark.seq}`));
    if (this.marked.dataset.shown !== lines.join("\n")) {
      this.marked.dataset.shown = lines.join("\n");
      this.marked.replaceChildren(...lines.map((line, at) => make("li", line, { "data-state": data.marks[at].state })));
    }
  }

  // Where nothing new comes, the map knows nothing.
  tick(gone) {
    if (!this.data) return;
    this.showFound(gone);
    const stale = gone || performance.now() - this.gotAt > Math.max(15000, 3 * this.pause);
    this.map.setUnknown(stale);
    if (stale) put(this.summary, `Not known now. At ${clock(this.data.time)}: ${this.text}`);
  }

  pick(block) {
    if (!this.data || block === this.picked) return;
    [this.picked, this.found] = [block, null];
    this.readout.classList.add("told");
    if (this.slider.valueAsNumber !== block) this.slider.value = block;
    const start = block * this.data.block_bytes, end = Math.min(start + this.data.block_bytes, this.data.bytes);
    const age = this.ages[block] * this.data.unit_seconds;
    this.tell(`${this.place(block, start, end)}: checked ` +
      (this.ages[block] === 255 ? `more than ${duration(age)} ago.` : `about ${duration(age)} ago.`));
    clearTimeout(this.later);
    this.later = setTimeout(() => this.lookUp(block), 80);
  }

  async lookUp(block) {
    try {
      const found = await (await ask(`/v1/shards/${encodeURIComponent(this.id)}/blocks/${block}`)).json();
      if (this.picked !== block) return;
      this.found = found;
      this.showFound(isLost());
    } catch {
      // Asked again with the next status.
    }
  }

  // Its age goes on by the daemon's clock; that it does is not read aloud.
  showFound(gone) {
    const { found, picked } = this;
    if (!found) return;
    const names = found.tensors.slice(0, 4).map((tensor) => `${clean(tensor.name)} (${clean(tensor.dtype)})`);
    const more = found.tensors.length - names.length + found.more_tensors;
    const mark = found.mark ? ` ${found.mark.state === "failed" ? "Repair failed" : found.mark.state === "repaired" ? "Repaired" : "Damaged"}` +
      ` at ${clock(found.mark.time)}${found.mark.seq === null ? "" : `, record ${found.mark.seq}`}.` : "";
    const rest = `${mark} ` + (names.length
      ? `Holds ${names.join(", ")}${more > 0 ? ` and ${counted(more, "tensor")} more` : ""}.` : "No tensor is in it: header, padding or a raw file.");
    const head = `${this.place(picked, found.start, found.end)}: ${gone ? "last known as sealed" : "found as sealed"}`, at = clock(found.checked_at);
    this.tell(gone ? `${head} at ${at}.${rest}` : `${head} ${ago(found.checked_at)} ago, at ${at}.${rest}`, `${head} at ${at}.${rest}`);
  }

  place(block, start, end) {
    return `Block ${block}, bytes ${start.toLocaleString("en")} to ${(end - 1).toLocaleString("en")}`;
  }

  tell(text, spoken = text) {
    put(this.readout, text);
    if (this.slider.getAttribute("aria-valuetext") !== spoken) this.slider.setAttribute("aria-valuetext", spoken);
  }
}

function showLegend() {
  const samples = [[0, "", "just checked"], [90, "", "due again"], [150, "", "late: not within the period"], [255, "", "not for two periods, or not known"],
    [80, "damaged", "damaged"], [80, "repaired", "repaired"]];
  byId("legend").replaceChildren(...samples.map(([age, state, text]) => {
    const item = make("span"), canvas = make("canvas", undefined, { "aria-hidden": "true" });
    drawSample(canvas, age, state);
    item.append(canvas, text);
    return item;
  }));
}

// --- Clients, audit log ----------------------------------------------------------------------------------------------

function showClients(handout) {
  byId("clients").hidden = !handout;
  if (!handout) return;
  const { clients } = handout, since = (seconds) => clock(Date.parse(status.time) - seconds * 1000);
  spell(byId("client-count"), clients.length === 0 ? "No client is attached."
    : `${counted(clients.length, "client")}, ${counted(handout.leases, "lease")} of watched shards. Whose processes they are is told by \`vram status --json\` on that machine.`);
  byId("lingering").hidden = handout.lingering_bytes === 0;
  put(byId("lingering"), `${bytes(handout.lingering_bytes)} of shards that were given up by force are still in the memory of clients. Nobody watches them.`);
  byId("client-table").hidden = clients.length === 0;
  byId("client-rows").replaceChildren(...clients.slice(0, CLIENTS_SHOWN).map((client) => {
    const row = make("tr", undefined, { role: "row" }), shards = cell("Shards"), list = make("ul");
    list.append(...client.leases.map((lease) => make("li",
      `${clean(lease.shard_id)}, since ${since(lease.held_seconds)}${lease.watched ? "" : "; given up by force, nobody watches it"}`)));
    shards.append(client.leases.length ? list : "none");
    row.append(make("th", String(client.client), { role: "rowheader", scope: "row", "data-label": "Client" }),
      cell("Connected", `since ${since(client.connected_seconds)} (${duration(client.connected_seconds)})`), shards);
    return row;
  }));
}

function showAudit(audit) {
  const evidence = audit.evidence, facts = [];
  facts.push(["State", audit.health === "good" ? "✓ good" : `✕ ${clean(audit.health)}${audit.reason ? `: ${clean(audit.reason)}` : ""}`]);
  facts.push(["Position", `${counted(audit.records, "record")} on disk${audit.queued ? `, ${audit.queued} on the way` : ""}` +
    `${audit.lost ? `, ${audit.lost} lost` : ""}${audit.late ? `, ${audit.late} late` : ""}`]);
  facts.push(["Last record", audit.last_record_at ? `${clock(audit.last_record_at)}, ${ago(audit.last_record_at)} ago` : "none since the start"]);
  const at = (moment) => moment ? `, ${clock(moment)}, ${ago(moment)} ago` : "";
  if (evidence) {
    facts.push(["Signed", `${counted(evidence.signed_records, "record")}${at(evidence.signed_at)}, as ${clean(evidence.origin)}`]);
    if (evidence.quorum) facts.push(["Cosigned", `${counted(evidence.cosigned_records, "record")}${at(evidence.cosigned_at)}, by ${evidence.quorum} or more of ${evidence.witnesses.length}`]);
  } else {
    facts.push(["Signed", "no: the log has no key (vram audit keygen makes one)"]);
  }
  const list = byId("audit-facts");
  if (list.children.length !== facts.length * 2) list.replaceChildren(...facts.flatMap(() => [make("dt"), make("dd")]));
  facts.forEach(([name, text], at) => { put(list.children[at * 2], name); put(list.children[at * 2 + 1], text); });
  const places = evidence ? [...evidence.replicas, ...evidence.witnesses] : [];
  byId("elsewhere").hidden = places.length === 0;
  byId("elsewhere-rows").replaceChildren(...places.map((place) => {
    const row = make("tr", undefined, { role: "row" });
    row.append(cell("Elsewhere", clean(place.name)), cell("State", clean(place.state)), cell("Records", String(place.records)),
      cell("Behind", String(place.lag_records)), cell("Last error", place.last_error ? clean(place.last_error) : ""));
    return row;
  }));
  byId("published").hidden = !evidence;
  put(byId("verify-command"), `vram audit verify ${location.origin}/audit --vkey VKEY`);
}

// --- Events ----------------------------------------------------------------------------------------------------------

function take(seq, record) {
  if (records.some((one) => one.seq === seq && one.time_ns === record.time_ns && one.event === record.event)) return;
  // Of passes the last one says all.
  if (["ScrubPassed", "SealVerified", "FingerprintMatched"].includes(record.event)) {
    records = records.filter((one) => one.event !== record.event || one.shard_id !== record.shard_id);
  }
  records.push({ ...record, seq });
}

async function takeAll() {
  try {
    for (const { seq, record } of await (await ask("/v1/records")).json()) take(seq, record);
    records.sort((a, b) => a.time_ns - b.time_ns || (a.seq ?? 0) - (b.seq ?? 0));
    showEvents();
  } catch {
    // The next stream, or the next record, brings it.
  }
}

function showEvents() {
  records = records.slice(-200);
  byId("event-rows").replaceChildren(...records.slice(-EVENTS_SHOWN).reverse().map((record) => {
    const row = make("tr", undefined, { role: "row", class: record.severity === "critical" ? "critical" : "routine" });
    const time = make("time", clock(record.time_ns / 1e6), { datetime: clean(record.time) }), at = cell("Time");
    at.append(time);
    row.append(cell("Record", record.seq === null ? "not on record" : String(record.seq)), at,
      cell("Event", `${clean(record.event)}${record.severity === "critical" ? " (critical)" : ""}`),
      cell("Shard", record.shard_id ? clean(record.shard_id) : ""), cell("What", tell(record)));
    return row;
  }));
}

function listen() {
  source = new EventSource("/v1/events");
  const mine = source;
  mine.addEventListener("open", () => { [listening, sourceWaits] = [true, 1000]; takeAll(); showStream(); });
  mine.addEventListener("lagged", takeAll);
  mine.addEventListener("record", (event) => {
    let record;
    try { record = JSON.parse(event.data); } catch { return; }
    take(/^\d+$/.test(event.lastEventId) ? Number(event.lastEventId) : null, record);
    showEvents();
    // Something happened: the rest is asked now, and not at the next turn.
    if (record.severity === "critical" || ["SealVerified", "VramSealed", "VramDeallocated"].includes(record.event)) hurry(record.shard_id);
  });
  mine.addEventListener("error", () => {
    listening = false;
    mine.close();
    // Not at once: the daemon may be gone, or all its streams taken. poll() goes on meanwhile, and listens again.
    setTimeout(() => { if (source === mine) source = null; }, sourceWaits);
    sourceWaits = Math.min(sourceWaits * 2, 30000);
    showStream();
  });
}

// Asks soon, once for all that happens until then.
function hurry(shard_id) {
  const waits = hurried.size > 0;
  hurried.add(shard_id);
  if (waits) return;
  setTimeout(() => {
    for (const id of hurried) maps.get(id)?.expire();
    hurried.clear();
    poll();
  }, SOON_MS);
}

function showStream() {
  put(byId("stream"), isLost() ? "No contact: nothing new is heard." : listening
    ? "As they are made." : `The stream of events is not open; the state is asked every ${POLL_MS / 1000}${NEAR}s all the same.`);
}

// ---------------------------------------------------------------------------------------------------------------------

showLegend();
DARK.addEventListener("change", showLegend);
setInterval(showVerdict, 1000);
document.addEventListener("visibilitychange", () => {
  // Browsers open only a few connections to one place, for all tabs together: one that nobody sees keeps none open.
  if (document.hidden) {
    source?.close();
    [source, listening] = [null, false];
  } else {
    showVerdict();
    poll();
  }
});
poll();
