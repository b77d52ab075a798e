// A device of 200 GiB that nobody has: the page's questions are answered here, and how smoothly it goes is measured.

const BLOCKS = 204_800;

/** Answers for one shard of 204,800 blocks, whose ages change with every question. */
export async function synthetic(page, base) {
  const real = await (await fetch(`${base}/v1/status`)).json();
  const ages = new Uint8Array(BLOCKS), unit = 0.6;
  let state = 20261125;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const marks = [[31_234, "damaged"], [49_999, "repaired"], [204_799, "repaired"]].map(([block, state], at) =>
    ({ block, state, seq: 1000 + at, time: "2026-11-25T16:00:00Z" }));
  const shard = { ...real.shards[0], shard_id: "large", bytes: BLOCKS * 2 ** 20, state: "QUARANTINED", tensors: 1000, last_fault: {
    block: 31_234, tensor: "model.layers.11.mlp.up_proj.weight", first_byte: 31_234 * 2 ** 20 + 77, differing_bytes: 1, differing_bits: 1,
    kind: "single-bit", suspect_from_ns: (Date.now() - 70_000) * 1e6, found_ns: (Date.now() - 30_000) * 1e6, outcome: "quarantined",
  } };
  const json = (route, value) => route.fulfill({ json: value });
  await page.route("**/v1/status", (route) => json(route, {
    ...real, ready: false, not_ready: ["large: the shard is quarantined"], time: new Date().toISOString(), shards: [shard], scrub: { ...real.scrub, period_seconds: 60 },
    device: { ...real.device, total_bytes: 256 * 2 ** 30, used_bytes: shard.bytes, available_bytes: 56 * 2 ** 30 },
  }));
  await page.route("**/v1/shards/large/blocks", (route) => {
    for (let block = 0; block < BLOCKS; block += 1) ages[block] = Math.floor(random() * 70);
    for (let late = 0; late < 300; late += 1) ages[Math.floor(random() * BLOCKS)] = 105 + Math.floor(random() * 90);
    return json(route, {
      shard_id: "large", state: "QUARANTINED", time: new Date().toISOString(), bytes: shard.bytes, block_bytes: 2 ** 20, blocks: BLOCKS,
      unit_seconds: unit, ages: Buffer.from(ages).toString("base64"), marks,
    });
  });
  await page.route("**/v1/shards/large/blocks/*", (route) => json(route, {
    shard_id: "large", block: 1, start: 0, end: 1, age_seconds: 1, checked_at: new Date().toISOString(),
    tensors: [{ name: "model.layers.0.mlp.weight", dtype: "BF16", start: 0, end: 1 }], more_tensors: 0, mark: null,
  }));
}

/** Moves the pointer over the map for some seconds and looks at frames, long tasks and the map's own drawing. */
export async function measure(page) {
  await page.evaluate(() => {
    const seen = globalThis.seen = { gaps: [], tasks: [], last: performance.now(), on: true };
    new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((entry) => entry.duration))).observe({ entryTypes: ["longtask"] });
    const frame = (at) => { seen.gaps.push(at - seen.last); seen.last = at; if (seen.on) requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
    maps.get("large").map.drawn = { count: 0, worst: 0 };
  });
  await page.locator("section.map canvas").scrollIntoViewIfNeeded();
  const box = await page.locator("section.map canvas").boundingBox();
  const begun = Date.now();
  for (let step = 0; Date.now() - begun < 12000; step += 1) {
    await page.mouse.move(box.x + step * 7 % box.width, box.y + step * 3 % Math.min(box.height, 500));
    await page.waitForTimeout(15);
  }
  const { gaps, tasks, drawn, per, cell } = await page.evaluate(() => {
    seen.on = false;
    const { drawn, plan } = maps.get("large").map;
    return { gaps: seen.gaps.slice(1), tasks: seen.tasks, drawn, per: plan.per, cell: plan.cell };
  });
  gaps.sort((a, b) => a - b);
  const at = (part) => gaps[Math.min(gaps.length - 1, Math.floor(gaps.length * part))];
  const longest = Math.max(0, ...tasks);
  const text = `${per === 1 ? "each a cell" : `${per} a cell`} of ${cell} pixels; ${gaps.length} frames in 12 s, ${at(.5).toFixed(1)} ms apart (95 %: ` +
    `${at(.95).toFixed(1)}, worst ${at(1).toFixed(1)}); ${drawn.count} drawings, the slowest ${drawn.worst.toFixed(1)} ms; ` +
    `${tasks.length} tasks over 50 ms, the longest ${longest.toFixed(0)} ms`;
  return { text, worstDraw: drawn.worst, longest, middle: at(.5) };
}
