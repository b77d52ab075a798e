// Drives the status page of a running daemon in a real browser. Started by `cargo xtask page`, which gives what it needs in
// the environment. Exits with 0 only if everything held; says what it measured on lines that begin with `figure`.

import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { mkdirSync, writeFileSync } from "node:fs";
import { createConnection } from "node:net";
import assert from "node:assert/strict";
import { synthetic, measure } from "./large.mjs";

const { PAGE_TOOLS, CHROMIUM, CHROMIUM_LIBRARIES, BASE, VRAM, SOCKET, SHARD, PERIOD_S, DAEMON_PID, HOSTILE, ATTACH, SHOTS, FONTS } = process.env;
const require = createRequire(`${PAGE_TOOLS}/package.json`);
const { chromium } = require("playwright-core");
const axe = require("axe-core");

const period = Number(PERIOD_S) * 1000;
const OTHER = "model-0-bin";
const say = (text) => console.log(text);
const vram = (...words) => JSON.parse(execFileSync(VRAM, [...words, "--json", "--socket", SOCKET], { encoding: "utf8" }));
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  env: { ...process.env, LD_LIBRARY_PATH: CHROMIUM_LIBRARIES, ...(FONTS ? { FONTCONFIG_FILE: FONTS } : {}) },
});
say(`Chromium ${browser.version()}, axe-core ${axe.version}`);

// What a page must never do, gathered from every page that is opened.
const complaints = [];
async function open({ width = 1280, height = 900, dark = false, phone = false, prepare, expected = () => false } = {}) {
  const context = await browser.newContext({
    viewport: { width, height }, colorScheme: dark ? "dark" : "light", reducedMotion: "reduce", locale: "en-GB",
    timezoneId: "UTC", deviceScaleFactor: 1, hasTouch: phone, isMobile: phone,
  });
  const page = await context.newPage();
  await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) =>
    console.error(`CSP violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`)));
  // Only this test reads the map back.
  const own = (text) => text.startsWith("Canvas2D: Multiple readback operations");
  const complain = (text) => { if (!expected(text) && !own(text)) complaints.push(text); };
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complain(message.text()); });
  page.on("pageerror", (error) => complain(`exception: ${error.stack}`));
  page.on("dialog", (dialog) => { complaints.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(`${BASE}/`) && !url.startsWith("data:image/svg+xml")) complain(`a request to ${url}`);
  });
  if (prepare) await prepare(page, context);
  await page.goto(`${BASE}/`);
  return page;
}

const headline = (page) => page.textContent("#headline");
const level = (page) => page.getAttribute("#verdict", "class");
async function until(page, what, holds, limit = 20000) {
  const begun = Date.now();
  for (;;) {
    if (await holds()) return Date.now() - begun;
    if (Date.now() - begun > limit) {
      throw new Error(`waited ${limit} ms, and not: ${what}; it says: ${await page.textContent("#verdict")}`);
    }
    await sleep(50);
  }
}
const isWell = (page) => async () => await level(page) === "verdict good" && await headline(page) === "All is well";

let checked = 0;
async function accessible(page, what) {
  await page.evaluate(axe.source);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const list = found.violations.map((one) => `${one.id}: ${one.help}: ${one.nodes.map((node) => `${node.html} ${node.failureSummary}`).join(" | ")}`);
  assert.deepEqual(list, [], `axe-core on ${what}`);
  checked += 1;
}

// What is in the window, or from the top of one part of the page to the end of another.
async function shoot(page, name, from, to) {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  await page.evaluate(() => scrollTo(0, 0));
  const parts = to && await page.evaluate((parts) => parts.map((part) => document.querySelector(part).getBoundingClientRect().toJSON()), [from, to]);
  const y = parts ? Math.max(0, parts[0].top - 8) : 0;
  const png = await page.screenshot(parts ? { fullPage: true, clip: { x: 0, y, width: page.viewportSize().width, height: parts[1].bottom + 8 - y } } : {});
  writeFileSync(`${SHOTS}/${name}.png`, png);
  say(`${name}.png: ${Math.round(png.length / 1024)} KiB`);
}

// How much of a block's cell is in the colour of damage.
const red = (page, block) => page.evaluate(([id, block]) => {
  const { map, canvas } = maps.get(id), plan = map.plan, scale = canvas.width / (plan.columns * plan.cell);
  const cell = Math.floor(block / plan.per), side = Math.floor(plan.cell * scale);
  const [x, y] = [cell % plan.columns, Math.floor(cell / plan.columns)].map((n) => Math.floor(n * plan.cell * scale));
  const { data } = canvas.getContext("2d").getImageData(x, y, side, side);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) if (data[at] === 179 && data[at + 1] === 0 && data[at + 2] === 15) count += 1;
  return count / (data.length / 4);
}, [SHARD, block]);
const figure = (page, id = SHARD) => page.locator(`section[aria-label="Blocks of ${id}"]`);
const readoutOf = (page, id = SHARD) => figure(page, id).locator(".readout");
const summaryOf = (page, id = SHARD) => figure(page, id).locator("> p").first();

// A client of the attach socket: it holds leases until the connection ends.
async function attach(...shards) {
  const socket = createConnection(ATTACH);
  const said = [];
  let rest = Buffer.alloc(0);
  socket.on("data", (more) => {
    rest = Buffer.concat([rest, more]);
    while (rest.length >= 4 && rest.length >= 4 + rest.readUInt32LE(0)) {
      said.push(JSON.parse(rest.subarray(4, 4 + rest.readUInt32LE(0))));
      rest = rest.subarray(4 + rest.readUInt32LE(0));
    }
  });
  socket.on("error", (error) => said.push({ type: "error", message: error.message }));
  for (const message of [{ type: "hello", version: 1 }, ...shards.map((shard) => ({ type: "attach", shard }))]) {
    const body = Buffer.from(JSON.stringify(message)), length = Buffer.alloc(4);
    length.writeUInt32LE(body.length);
    socket.write(Buffer.concat([length, body]));
  }
  const attached = () => said.filter((one) => one.type === "attached").length;
  for (let turn = 0; attached() < shards.length && turn < 200; turn += 1) await sleep(20);
  assert.deepEqual([attached(), said.filter((one) => one.type === "error")], [shards.length, []], `attached to ${shards}`);
  return socket;
}

const marked = (page) => page.$$eval("#maps li", (items) => items.map((item) => [item.dataset.state, item.textContent]));

try {
  // All is well, for everybody.
  const page = await open();
  const phone = await open({ width: 390, height: 844, phone: true });
  const night = await open({ dark: true });
  const nightPhone = await open({ width: 390, height: 844, phone: true, dark: true });
  const all = { "desktop, light": page, "phone, light": phone, "desktop, dark": night, "phone, dark": nightPhone };
  for (const [name, one] of Object.entries(all)) {
    await until(one, `all is well (${name})`, isWell(one));
    await until(one, "the map is drawn", () => one.evaluate(() => maps.size > 0 && [...maps.values()].every((figure) => figure.map.drawn.count > 0)));
    await accessible(one, `${name}, all well`);
    const wide = await one.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${name}: ${wide} pixels wider than the screen`);
  }
  assert.match(await page.title(), /^✓ All is well/);
  await until(page, "events are live", async () => (await page.textContent("#stream")) === "As they are made.");
  await shoot(page, "page-light");
  await shoot(night, "page-dark");
  await shoot(phone, "page-phone", "body", "#memory");

  // By keyboard alone: the first stop leads past the head, and every block can be visited.
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the shards");
  const slider = figure(page).locator("input");
  await slider.focus();
  await page.keyboard.press("ArrowRight");
  await until(page, "the block is told", async () => /^Block 1, .*found as sealed.*Holds/.test(await slider.getAttribute("aria-valuetext") ?? ""));
  // And by pointing.
  await figure(page).locator("canvas").hover({ position: { x: 5, y: 5 } });
  const readout = readoutOf(page);
  await until(page, "block 0 is told", async () => /^Block 0, .*Holds model\.embed_tokens\.weight/.test(await readout.textContent()));
  // What is said of it is renewed, while the pointer rests: another check, another time, and never an age of long ago.
  const told = async () => /found as sealed (\d+\.\d)\u00a0s ago, at (\d\d:\d\d:\d\d)\u00a0UTC/.exec(await readout.textContent());
  const [, , first] = await told();
  await until(page, "another check of block 0 is told", async () => (await told())?.[2] !== first, 3 * period);
  for (let turn = 0; turn < 20; turn += 1) {
    const [text, age, at] = await told();
    const real = (Date.now() - Date.parse(`${new Date().toISOString().slice(0, 10)}T${at}Z`)) / 1000;
    assert.ok(Math.abs(real - age) < 2.5 && age < 2.5 * period / 1000, `${text}: ${real} s ago`);
    await sleep(100);
  }
  assert.equal(await page.evaluate(() => getComputedStyle(document.querySelector(".verdict")).transitionDuration), "0s");

  // A shard whose seal was given up stays in the list, and nothing green is said of it.
  vram("unseal", OTHER, "--reason", "a test");
  const rest = page.locator("#unsealed-rows");
  await until(page, "the unsealed shard is listed", async () => new RegExp(`${OTHER}.*UNSEALED`).test(await rest.textContent()));
  assert.equal(await rest.locator(".good-cell").count(), 0);
  await accessible(page, "an unsealed shard");
  vram("reseal", OTHER);
  await until(page, "it is well again", isWell(page));
  assert.equal(await rest.locator("tr").count(), 0);

  // A bit breaks. Which one, the page is not told before the daemon finds it.
  const { block } = vram("drill", SHARD, "--byte", String((5 << 20) + 12345), "--bit", "3");
  const broken = Date.now();
  assert.equal(await red(page, block), 0);
  await until(page, "the headline tells of damage", async () => await level(page) === "verdict bad" && (await headline(page)).includes(SHARD), 2 * period);
  const toldAfter = Date.now() - broken;
  await until(page, "the block turns", async () => (await marked(page)).some(([state, text]) => state === "damaged" && text.startsWith(`Block ${block}:`)), 2 * period - toldAfter);
  const turnedAfter = Date.now() - broken;
  await until(page, "the block is red", async () => await red(page, block) > 0.3, 1000);
  assert.match(await headline(page), /^Damaged: /);
  assert.match(await page.textContent("#detail"), new RegExp(`Block ${block} in .*suspect`));
  assert.match(await page.textContent("#since"), /^Since /);
  assert.match(await page.textContent("#remedy"), new RegExp(`vram repair ${SHARD}`));
  await page.click("#more");
  await until(page, "the runbook is shown", async () => (await page.textContent("#runbook")).includes("Resident weights are not what was sealed"));
  assert.match(await page.title(), /^✕ /);
  await accessible(page, "desktop, light, damaged");
  await until(nightPhone, "the phone tells it too", async () => await level(nightPhone) === "verdict bad");
  await accessible(nightPhone, "phone, dark, damaged");
  assert.equal(await page.textContent("#remedy code"), `vram repair ${SHARD}`);
  assert.match(await page.textContent("#remedy"), /\.$/);
  await page.evaluate(() => { byId("runbook").hidden = true; });
  await shoot(page, "page-damaged");
  say(`figure a broken bit: in the headline after ${toldAfter} ms, on the map after ${turnedAfter} ms (a period is ${period} ms)`);

  // Repaired, and which record says so.
  vram("repair", SHARD);
  const repaired = Date.now();
  await until(page, "all is well again", isWell(page));
  await until(page, "the record is named", async () => /record \d+ of the audit log/.test(await page.textContent("#others")));
  const shownAfter = Date.now() - repaired;
  const number = Number(/record (\d+) of the audit log/.exec(await page.textContent("#others"))[1]);
  const records = await (await fetch(`${BASE}/v1/records`)).json();
  const named = records.find((one) => one.seq === number)?.record;
  assert.deepEqual([named?.event, named?.shard_id, named?.block], ["BlockRepaired", SHARD, block], `record ${number}`);
  await until(page, "the block is marked as repaired", async () => (await marked(page)).some(([state, text]) => state === "repaired" && text.includes(`record ${number}`)));
  const rows = await page.$$eval("#event-rows tr", (rows) => rows.map((row) => [row.cells[0].textContent, row.cells[2].textContent]));
  assert.ok(rows.some(([seq, event]) => seq === String(number) && event.startsWith("BlockRepaired")), "the repair among the events");
  assert.ok(rows.some(([, event]) => event.startsWith("FaultInjected")), "the drill among the events");
  // The map was asked for after the repair was through: green is green.
  assert.doesNotMatch(await summaryOf(page).textContent(), /late|two periods/);
  await shoot(page, "page-repaired");
  await accessible(page, "desktop, light, repaired");
  say(`figure repaired: green after ${shownAfter} ms, with record ${number}`);
  assert.match(await page.textContent("#others"), /Answers given from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d\u00a0UTC were suspect/);

  // Who has what in use.
  const held = [await attach(SHARD), await attach(SHARD, OTHER)];
  await until(page, "both clients are told", async () => await page.locator("#client-rows tr").count() === 2);
  assert.match(await page.textContent("#client-count"), /^2 clients, 3 leases/);
  assert.match(await page.locator("#client-rows tr").last().textContent(), new RegExp(`since .*UTC.*${SHARD}, since .*${OTHER}, since`));
  await accessible(page, "desktop, light, clients");
  await shoot(page, "page-clients", "#clients", "#audit");
  for (const socket of held) socket.destroy();
  await until(page, "they have gone", async () => (await page.textContent("#client-count")) === "No client is attached.");

  // A name from a file is text: what would be a picture, or turn the line around, is neither.
  const [{ shard_id: names }] = vram("load", HOSTILE);
  await until(page, "the names are on the page", async () => await figure(page, names).count() === 1);
  await until(page, "their map is drawn", () => page.evaluate((id) => maps.get(id).map.drawn.count > 0, names));
  await figure(page, names).locator("canvas").hover({ position: { x: 5, y: 5 } });
  await until(page, "the names are told", async () => /Holds/.test(await readoutOf(page, names).textContent()));
  assert.match(await readoutOf(page, names).textContent(), /<img src=x onerror=alert\(1\)>/);
  assert.doesNotMatch(await readoutOf(page, names).textContent(), /\u202e/);
  assert.equal(await page.locator("img").count(), 0);
  vram("release", names);
  await until(page, "they are gone", async () => await figure(page, names).count() === 0);

  // A map that is older than the status, from a cache in between or made too early, calls nothing late that is not.
  const behind = await open({ prepare: (one) => one.route("**/blocks", async (route) => {
    const answer = await (await route.fetch()).json();
    answer.ages = Buffer.alloc(answer.blocks, 180).toString("base64");
    answer.time = new Date(Date.parse(answer.time) - 10000).toISOString();
    return route.fulfill({ json: answer });
  }) });
  await until(behind, "the old map is drawn", () => behind.evaluate((id) => maps.get(id)?.map.drawn.count > 0, SHARD));
  await until(behind, "all is well beside an old map", isWell(behind));
  assert.match(await summaryOf(behind).textContent(), /blocks of 1\.0\u00a0MiB; \d+ checked within the period\.|1 repaired\.$/);
  assert.doesNotMatch(await summaryOf(behind).textContent(), /late|two periods/);
  await behind.close();

  // Without the stream of events the page knows all the same.
  const deaf = await open({ prepare: (one) => one.route("**/v1/events", (route) => route.abort()), expected: (text) => text.includes("ERR_FAILED") });
  await until(deaf, "all is well without events", isWell(deaf));
  await until(deaf, "it says so", async () => (await deaf.textContent("#stream")).includes("not open"));
  await deaf.close();

  // What only some daemons have: clients, witnesses, replicas, some of them in trouble, with names that others chose.
  const crowded = await open({ prepare: (one) => one.route("**/v1/status", async (route) => {
    const answer = await (await route.fetch()).json();
    const place = (name, state) => ({ name, state, records: 5, lag_records: 7, last_success: null, failures: 3, last_error: `<b>${name}</b>` });
    const lease = (shard_id, watched) => ({ lease: 1, shard_id, held_seconds: 5, watched });
    answer.handout = { leases: 1, lingering_bytes: 3 << 20, clients: [
      { client: 4711, connected_seconds: 90_000, leases: [lease("a", true), lease("<img src=x onerror=alert(3)>", false)] },
      { client: 4712, connected_seconds: 1, leases: [] },
    ] };
    Object.assign(answer.audit.evidence, { witnesses: [place("w1", "working"), place("w2", "failing")], replicas: [place("r1", "working")], quorum: 1 });
    return route.fulfill({ json: answer });
  }) });
  await until(crowded, "it is in doubt", async () => await level(crowded) === "verdict warn" && /witness w2 is failing/.test(await headline(crowded)));
  assert.match(await crowded.textContent("#client-rows"), /^4711since \d{4}-\d\d-\d\d.*UTC \(1\u00a0d 1\u00a0h\).*<img src=x onerror=alert\(3\)>.*nobody watches it4712.*none$/);
  assert.match(await crowded.textContent("#lingering"), /^3\.0\u00a0MiB of shards/);
  assert.equal(await crowded.locator("#elsewhere-rows tr").count(), 3);
  assert.match(await crowded.textContent("#audit-facts"), /Signed\d+ records.*Cosigned/);
  await accessible(crowded, "clients and witnesses");
  await crowded.close();
  assert.match(await page.textContent("#audit-facts"), /Signed\d+ records, .* ago, as/);
  assert.match(await page.textContent("#verify-command"), new RegExp(`vram audit verify ${BASE}/audit`));
  assert.equal((await fetch(BASE + await page.getAttribute("#published a", "href"))).status, 200);

  // That violations are seen at all, and that the policy stops what it is for.
  const stopped = [];
  const control = await open({ expected: (text) => text.includes("example.org") && stopped.push(text) });
  await control.evaluate(() => { document.body.append(Object.assign(document.createElement("img"), { src: "https://example.org/x.png" })); });
  await until(control, "a violation is seen", async () => stopped.some((text) => text.startsWith("CSP violation: img-src")));
  await assert.rejects(control.evaluate(() => { document.body.innerHTML = "<i>x</i>"; }), /TrustedHTML/);
  await control.close();
  complaints.splice(0, Infinity, ...complaints.filter((text) => !/TrustedHTML|require-trusted-types-for|trusted-types/.test(text)));

  // 200 GiB.
  const large = await open({ prepare: (one) => synthetic(one, BASE) });
  await until(large, "the large map", () => large.evaluate(() => maps.get("large")?.map.drawn.count > 0));
  await accessible(large, "200 GiB");
  const figures = await measure(large);
  say(`figure 204,800 blocks: ${figures.text}`);
  assert.ok(figures.worstDraw < 250 && figures.longest < 500 && figures.middle < 100, "204,800 blocks are not smooth");
  await shoot(large, "page-200gib");
  await large.close();

  // A line that breaks and comes back, by itself. While it is broken nothing looks well.
  const away = await open({ expected: (text) => text.includes("ERR_INTERNET_DISCONNECTED") });
  await until(away, "all is well", isWell(away));
  await away.context().setOffline(true);
  await until(away, "no contact", async () => await level(away) === "verdict gone", 10000);
  await away.context().setOffline(false);
  await until(away, "all is well after the line is back", isWell(away));
  await until(away, "events are live again", async () => (await away.textContent("#stream")) === "As they are made.", 40000);
  await away.close();

  // A daemon that is there and does not move.
  const silent = (text) => /ERR_|EventSource/.test(text);
  const watcher = await open({ expected: silent });
  await until(watcher, "all is well", isWell(watcher));
  for (const one of Object.values(all)) await one.close();
  process.kill(Number(DAEMON_PID), "SIGSTOP");
  const frozen = Date.now();
  await until(watcher, "a frozen daemon is noticed", async () => await level(watcher) === "verdict gone", 12000);
  say(`figure a frozen daemon: said after ${Date.now() - frozen} ms`);
  process.kill(Number(DAEMON_PID), "SIGCONT");
  await until(watcher, "all is well after it moves again", isWell(watcher), 30000);

  // And one that is gone.
  process.kill(Number(DAEMON_PID), "SIGTERM");
  const ended = Date.now();
  await until(watcher, "the end of the daemon is noticed", async () => await level(watcher) === "verdict gone", 15000);
  say(`figure a stopped daemon: said after ${Date.now() - ended} ms`);
  assert.equal(await headline(watcher), "No contact with the daemon");
  assert.match(await watcher.title(), /^\? No contact/);
  assert.match(await watcher.textContent("#remedy"), /systemctl status vram/);
  assert.equal(await watcher.locator(".good, .good-cell").count(), 0, "something still looks well");
  assert.match(await watcher.textContent("#shard-rows"), /was VERIFIED/);
  assert.ok(await watcher.evaluate(() => [...maps.values()].every((figure) => figure.map.unknown)), "a map still shows ages");
  await accessible(watcher, "no contact");
  await shoot(watcher, "page-lost");

  assert.deepEqual(complaints, [], "errors, violations of the policy or requests elsewhere");
  say(`figure accessibility: axe-core ${axe.version} finds nothing in ${checked} states of the page`);
} finally {
  await browser.close();
}
