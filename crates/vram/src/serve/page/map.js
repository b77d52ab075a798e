
// The map: one cell a block, or the worst of several where there are more blocks than room. A cell is the darker the longer
// ago it was checked; late ones are chequered, damaged ones crossed out, repaired ones ringed, so colour is never needed.

const FEW = 1500; // late cells that are pointed out one by one
const LATE = 100, OVERDUE = 200; // in hundredths of the period
const DARK = matchMedia("(prefers-color-scheme: dark)");

function inks() {
  return DARK.matches
    ? { fresh: [110, 226, 166], aging: [38, 92, 68], late: [[246, 198, 103], [96, 70, 14]], overdue: [[176, 182, 190], [58, 64, 72]],
        paper: "#1c2127", damaged: "#ff5d5d", repaired: "#8cc2ff", failed: "#ff5d5d", edge: "#0b0d10", cursor: "#fff" }
    : { fresh: [10, 104, 62], aging: [176, 219, 193], late: [[214, 150, 0], [255, 236, 190]], overdue: [[104, 110, 118], [222, 224, 228]],
        paper: "#fff", damaged: "#b3000f", repaired: "#0b4ea2", failed: "#b3000f", edge: "#fff", cursor: "#000" };
}

// The colour of each age, twice: for the two kinds of square of a chequered cell.
function palettes(ink) {
  const pack = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  return [0, 1].map((kind) => Uint32Array.from({ length: 256 }, (_, age) => {
    if (age >= OVERDUE) return pack(ink.overdue[kind]);
    if (age >= LATE) return pack(ink.late[kind]);
    return pack(ink.fresh.map((from, at) => Math.round(from + (ink.aging[at] - from) * age / LATE)));
  }));
}

// How blocks are laid out: blocks a cell, cells a row, and pixels a cell.
function layout(blocks, width, tallest) {
  for (const cell of [28, 20, 14, 11, 9, 7, 6, 5, 4, 3]) {
    const columns = Math.max(1, Math.floor(width / cell));
    const rows = Math.ceil(blocks / columns);
    if (rows * cell <= tallest) return { per: 1, columns, rows, cell, cells: blocks };
  }
  const cell = 3, columns = Math.max(1, Math.floor(width / cell)), most = Math.max(1, Math.floor(tallest / cell));
  const per = Math.ceil(blocks / (columns * most)), cells = Math.ceil(blocks / per);
  return { per, columns, rows: Math.ceil(cells / columns), cell, cells };
}

// Larger than a cell where cells are small, and wholly inside of the map.
function drawMark(pen, state, x, y, size, wide, high, ink) {
  const side = Math.max(size, 11), inside = (at, most) => Math.max(0, Math.min(at + size / 2 - side / 2, most - side));
  const left = inside(x, wide), top = inside(y, high), half = side / 2, thick = Math.max(2, side / 9);
  if (state === "repaired") {
    for (const [width, colour] of [[thick + 3, ink.edge], [thick, ink.repaired]]) {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.beginPath(); pen.arc(left + half, top + half, half - thick / 2 - 1.5, 0, 7); pen.stroke();
    }
    return;
  }
  pen.fillStyle = ink[state] || ink.damaged;
  pen.fillRect(left, top, side, side);
  pen.lineWidth = thick;
  pen.strokeStyle = ink.edge;
  pen.beginPath();
  pen.moveTo(left + 1, top + 1); pen.lineTo(left + side - 1, top + side - 1);
  pen.moveTo(left + side - 1, top + 1); pen.lineTo(left + 1, top + side - 1);
  pen.stroke();
}

// One late cell among many small ones would be lost: a filled square with an edge, or an empty one for what is overdue.
function drawLate(pen, overdue, x, y, ink) {
  pen.fillStyle = overdue ? ink.edge : `rgb(${ink.late[0].join(" ")})`;
  pen.fillRect(x - 2, y - 2, 7, 7);
  pen.lineWidth = overdue ? 2 : 1;
  pen.strokeStyle = ink.cursor;
  pen.strokeRect(x - 1.5, y - 1.5, 6, 6);
}

class BlockMap {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.small = document.createElement("canvas");
    this.ages = new Uint8Array(0);
    this.marks = new Map();
    this.cursor = -1;
    this.unknown = false;
    this.wanted = false;
    this.drawn = { count: 0, worst: 0 }; // Of blocks: before the first answer, an empty frame is none.
    canvas.addEventListener("pointermove", (event) => this.point(event, onPick));
    canvas.addEventListener("pointerdown", (event) => this.point(event, onPick));
    new ResizeObserver(() => this.paintLater(true)).observe(canvas.parentElement);
    DARK.addEventListener("change", () => this.paintLater(true));
  }

  update(ages, marks) {
    this.ages = ages;
    this.marks = new Map(marks.map((mark) => [mark.block, mark]));
    this.paintLater(true);
  }

  setUnknown(unknown) {
    if (this.unknown === unknown) return;
    this.unknown = unknown;
    this.paintLater(true);
  }

  setCursor(block) {
    if (this.cursor === block) return;
    this.cursor = block;
    this.paintLater(false);
  }

  point(event, onPick) {
    const plan = this.plan, box = this.canvas.getBoundingClientRect();
    if (!plan || box.width === 0) return;
    const column = Math.floor((event.clientX - box.left) / plan.cell), row = Math.floor((event.clientY - box.top) / plan.cell);
    const cell = row * plan.columns + column;
    if (column < 0 || row < 0 || column >= plan.columns || cell >= plan.cells) return;
    const block = this.worstOf(cell);
    this.setCursor(block);
    onPick(block);
  }

  // Of the blocks of a cell the one that matters most: damaged, repaired, else the oldest.
  worstOf(cell) {
    const from = cell * this.plan.per, to = Math.min(from + this.plan.per, this.ages.length);
    let worst = from, weight = -1;
    for (let block = from; block < to; block += 1) {
      const mark = this.marks.get(block);
      const weighs = mark ? (mark.state === "repaired" ? 300 : 400) : this.ages[block];
      if (weighs > weight) { worst = block; weight = weighs; }
    }
    return worst;
  }

  paintLater(anew) {
    this.anew ||= anew;
    if (this.wanted) return;
    this.wanted = true;
    requestAnimationFrame(() => {
      this.wanted = false;
      const begun = performance.now();
      if (this.anew) this.fill();
      this.anew = false;
      this.paint();
      const took = performance.now() - begun;
      if (this.ages.length > 0) this.drawn = { count: this.drawn.count + 1, worst: Math.max(this.drawn.worst, took) };
    });
  }

  // One pixel a cell.
  fill() {
    const width = this.canvas.parentElement.clientWidth, tallest = Math.min(560, Math.max(240, innerHeight * 0.55));
    const plan = this.plan = layout(this.ages.length, width - 2, tallest);
    const { small, ages } = this, rows = Math.max(1, plan.rows);
    if (small.width !== plan.columns || small.height !== rows) { small.width = plan.columns; small.height = rows; }
    const image = new ImageData(plan.columns, rows), pixels = new Uint32Array(image.data.buffer);
    const kinds = palettes(inks());
    this.late = [];
    for (let cell = 0, block = 0, column = 0, row = 0; cell < plan.cells; cell += 1) {
      let worst = 0;
      for (const end = Math.min(block + plan.per, ages.length); block < end; block += 1) if (ages[block] > worst) worst = ages[block];
      if (worst >= LATE && plan.cell < 6 && this.late.length <= FEW) this.late.push([cell, worst >= OVERDUE]);
      pixels[cell] = kinds[(column + row) & 1][this.unknown ? 255 : worst];
      column += 1;
      if (column === plan.columns) { column = 0; row += 1; }
    }
    small.getContext("2d").putImageData(image, 0, 0);
  }

  paint() {
    const { canvas, plan } = this, ink = inks(), scale = Math.min(devicePixelRatio || 1, 2);
    const wide = plan.columns * plan.cell, high = Math.max(1, plan.rows) * plan.cell;
    const [width, height] = [Math.round(wide * scale), Math.round(high * scale)];
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width; canvas.height = height;
      canvas.style.width = `${wide + 2}px`; canvas.style.height = `${high + 2}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, wide, high);
    pen.drawImage(this.small, 0, 0, plan.columns, Math.max(1, plan.rows), 0, 0, wide, high);
    if (plan.cell >= 5) {
      pen.strokeStyle = ink.paper;
      pen.lineWidth = 1;
      pen.beginPath();
      for (let column = 1; column < plan.columns; column += 1) { pen.moveTo(column * plan.cell + .5, 0); pen.lineTo(column * plan.cell + .5, high); }
      for (let row = 1; row < plan.rows; row += 1) { pen.moveTo(0, row * plan.cell + .5); pen.lineTo(wide, row * plan.cell + .5); }
      pen.stroke();
    }
    const at = (cell) => [cell % plan.columns * plan.cell, Math.floor(cell / plan.columns) * plan.cell];
    const place = (block) => at(Math.floor(block / plan.per));
    if (!this.unknown && this.late.length <= FEW) for (const [cell, overdue] of this.late) drawLate(pen, overdue, ...at(cell), ink);
    const marks = [...this.marks.values()].sort((a, b) => (a.state === "repaired" ? 0 : 1) - (b.state === "repaired" ? 0 : 1));
    for (const mark of marks) drawMark(pen, mark.state, ...place(mark.block), plan.cell, wide, high, ink);
    if (this.cursor >= 0 && this.cursor < this.ages.length) {
      const [x, y] = place(this.cursor), size = Math.max(plan.cell, 7), off = (size - plan.cell) / 2;
      pen.lineWidth = 2;
      pen.strokeStyle = ink.cursor;
      pen.strokeRect(x - off, y - off, size, size);
    }
  }
}

// A cell for the legend.
function drawSample(canvas, age, state) {
  const pen = canvas.getContext("2d"), ink = inks(), kinds = palettes(ink);
  canvas.width = 32; canvas.height = 32;
  for (let at = 0; at < 16; at += 1) {
    const packed = kinds[(at + (at >> 2)) & 1][age];
    pen.fillStyle = `rgb(${packed & 255} ${packed >> 8 & 255} ${packed >> 16 & 255})`;
    pen.fillRect(at % 4 * 8, (at >> 2) * 8, 8, 8);
  }
  if (state) drawMark(pen, state, 4, 4, 24, 32, 32, ink);
}
