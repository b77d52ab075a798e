// A device of 200 GiB that nobody has: the page's questions are answered here, and how smoothly it goes is measured.

const BLOCKS = 204_800;

/** Answers for one shard of 204,800 blocks, whose ages change with every question. */
export async function synthetic(page, base) {
  const real = await (await fetch(`${base}/v1/status`)).json();
  // Every 5 minutes, so at 1 GiB/s a pass takes two thirds of that; some blocks are late all the same. Since the fault was
  // found nothing is checked: no age is less than these 30 s.
  const ages = new Uint8Array(BLOCKS), period = 300, unit = period / 100, since = 10, oldest = 194;
  const found = Date.now() - since * unit * 1000, day = 86_400_000;
  let state = 20261125;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const marks = [[31_234, "damaged", found, 1002], [49_999, "repaired", found - 3 * day, 310], [204_799, "repaired", found - day, 845]]
    .map(([block, state, at, seq]) => ({ block, state, seq, time: new Date(at).toISOString() }));
  const shard = { ...real.shards[0], shard_id: "large", bytes: BLOCKS * 2 ** 20, state: "QUARANTINED", tensors: 1000,
    oldest_age_seconds: oldest * unit, passes: 1210, faults: 3, repairs: 2, state_since: new Date(found).toISOString(), last_fault: {
    block: 31_234, tensor: "model.layers.11.mlp.up_proj.weight", first_byte: 31_234 * 2 ** 20 + 77, differing_bytes: 1, differing_bits: 1,
    kind: "single-bit", suspect_from_ns: (found - 150_000) * 1e6, found_ns: found * 1e6, outcome: "quarantined",
  } };
  const json = (route, value) => route.fulfill({ json: value });
  await page.route("**/v1/status", (route) => json(route, {
    ...real, ready: false, not_ready: ["large: the shard is quarantined"], time: new Date().toISOString(), shards: [shard], 
    scrub: { ...real.scrub, period_seconds: period, throughput_bytes_per_second: 2 ** 30 }, ready_since: new Date(found).toISOString(),
    devices: [{ ...real.devices[0], total_bytes: 256 * 2 ** 30, used_bytes: shard.bytes, available_bytes: 56 * 2 ** 30 }],
  }));
  await page.route("**/v1/shards/large/blocks", (route) => {
    for (let block = 0; block < BLOCKS; block += 1) ages[block] = since + Math.floor(random() * 68);
    for (let late = 0; late < 300; late += 1) ages[Math.floor(random() * BLOCKS)] = late ? 105 + Math.floor(random() * (oldest - 105)) : oldest;
    return json(route, {
      shard_id: "large", state: "QUARANTINED", time: new Date().toISOString(), bytes: shard.bytes, block_bytes: 2 ** 20, blocks: BLOCKS,
      unit_seconds: unit, ages: Buffer.from(ages).toString("base64"), marks,
    });
  });
  await page.route("**/v1/shards/large/blocks/*", (route) => {
    const block = Number(route.request().url().split("/").pop()), start = block * 2 ** 20, age = ages[block] * unit;
    return json(route, {
      shard_id: "large", block, start, end: start + 2 ** 20, age_seconds: age, checked_at: new Date(Date.now() - age * 1000).toISOString(),
      tensors: [{ name: `model.layers.${Math.floor(block / 2600)}.mlp.up_proj.weight`, dtype: "BF16", start, end: start + 2 ** 20 }],
      more_tensors: 0, mark: marks.find((mark) => mark.block === block) ?? null,
    });
  });
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
