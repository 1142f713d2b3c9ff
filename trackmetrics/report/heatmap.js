"use strict";

// Heatmaps: small ones by the pixel, and one with labels, hover and keys.

const DATA = JSON.parse(document.getElementById("data").textContent);
const NARROWEST_LABEL = 13; // CSS pixels between two labels
const LONGEST_LABEL = 110;
const FLOOR = -10; // log-probabilities below it look alike
const SHORTEST_SCALE = -3; // of log-probabilities, so that even odds do not look like none

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The shades from least to greatest, 256 of them, as the page's colours are now.
function shades() {
  const stops = style("--ramp").split(",").map((hex) => [1, 3, 5].map((at) => parseInt(hex.trim().slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, step) => {
    const at = (step / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((from, channel) => Math.round(from + (stops[low + 1][channel] - from) * (at - low)));
  });
}

const rgb = (shade) => `rgb(${shade.join(" ")})`;

// The colour of letters on a shade: whichever of black and white is easier to read.
function inkOn(shade) {
  const [r, g, b] = shade.map((value) => (value / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

// A number in the fewest digits that give it back.
function exact(value, dtype) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value < 0 ? "−∞" : "∞";
  if (dtype !== "float32") return String(value);
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return String(short);
  }
  return String(Number(value.toPrecision(9)));
}

const rounded = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

// A heatmap of the page's data with its numbers unpacked; unpacked once.
class Grid {
  static known = new Map();

  static at(place) {
    if (!Grid.known.has(place)) Grid.known.set(place, new Grid(DATA.heatmaps[place]));
    return Grid.known.get(place);
  }

  constructor(given) {
    Object.assign(this, given);
    const bytes = Uint8Array.from(atob(given.data), (letter) => letter.charCodeAt(0));
    this.values = given.dtype === "float32" ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
    this.data = null;
    [this.height, this.width] = given.shape;
    this.rowLabels = DATA.axes[given.rows];
    this.columnLabels = DATA.axes[given.columns];
    const finite = this.values.filter(Number.isFinite);
    const least = finite.reduce((a, b) => Math.min(a, b), 0);
    const greatest = finite.reduce((a, b) => Math.max(a, b), this.kind === "attention" ? 0 : -Infinity);
    this.low = this.kind === "attention" ? 0 : Math.min(SHORTEST_SCALE, Math.max(least, FLOOR));
    this.high = this.kind === "attention" ? greatest || 1 : 0;
    this.floored = this.kind !== "attention" && least < FLOOR;
  }

  value(row, column) {
    return this.values[row * this.width + column];
  }

  text(row, column) {
    return exact(this.value(row, column), this.dtype);
  }

  // Which of the shades a value has; null for NaN.
  step(value) {
    if (Number.isNaN(value)) return null;
    const share = (value - this.low) / (this.high - this.low || 1);
    const shown = Math.min(1, Math.max(0, share));
    return Math.round(255 * (this.kind === "attention" ? Math.sqrt(shown) : shown));
  }

  // "x (token 6)", or "tokens 5–6" of a block.
  static label(labels, index, block, length) {
    const first = index * block + 1;
    const last = Math.min(length, first + block - 1);
    const number = block > 1 ? `${first}–${last}` : String(first);
    return labels[index] === number ? number : `${labels[index]} (${number})`;
  }

  rowLabel(row) {
    return Grid.label(this.rowLabels, row, this.block[0], this.of[0]);
  }

  columnLabel(column) {
    return Grid.label(this.columnLabels, column, this.block[1], this.of[1]);
  }

  // What a cell says: its number, and what it is of.
  words(row, column) {
    const value = this.text(row, column);
    const blocks = this.block.some((size) => size > 1) ? `, largest of ${this.block.join(" × ")}` : "";
    if (this.kind === "attention") return [value + blocks, `${this.rowLabel(row)} → ${this.columnLabel(column)}`];
    const probability = ` · ${percent(Math.exp(this.value(row, column)))}`;
    if (this.kind === "prediction") return [value + probability, `class ${this.columnLabels[column]}`];
    return [value + probability + blocks, `${this.columnLabel(column)}: class ${this.rowLabels[row]}`];
  }
}

// As the page's tables have it: never rounded to 0 or 100.
function percent(share) {
  if (Number.isNaN(share)) return "NaN";
  if (share === 0 || share === 1) return `${100 * share}%`;
  if (share >= 0.0005 && share < 0.9995) return `${(100 * share).toFixed(1)}%`;
  return share > 0.5 ? ">99.9%" : "<0.1%";
}

// A heatmap of one pixel a cell, which the page's style makes larger.
function paintSmall(canvas, grid, ramp = shades()) {
  const missing = style("--missing").match(/\w\w/g).map((hex) => parseInt(hex, 16));
  [canvas.width, canvas.height] = [grid.width, grid.height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.width, grid.height);
  grid.values.forEach((value, at) => {
    const step = grid.step(value);
    image.data.set([...(step === null ? missing : ramp[step]), 255], 4 * at);
  });
  context.putImageData(image, 0, 0);
}

// A heatmap with labels on both axes. Gives where its cells stand.
function paintLabelled(canvas, grid, width, height) {
  const context = canvas.getContext("2d");
  const font = `${grid.height > 64 || grid.width > 64 ? 10 : 12}px ${style("--mono")}`;
  context.font = font;
  const widest = (labels) => Math.min(LONGEST_LABEL, Math.max(...labels.map((label) => context.measureText(label).width)));
  const left = Math.ceil(widest(grid.rowLabels)) + 8;
  const across = widest(grid.columnLabels);
  let cellWidth = (width - left) / grid.width;
  let cellHeight = Math.min(26, Math.max(9, 420 / grid.height));
  if (grid.kind === "attention") cellWidth = cellHeight = Math.min(cellWidth, 44, Math.max(2, (height - across - 8) / grid.height));
  else cellWidth = Math.min(cellWidth, 56);
  const upright = across <= cellWidth - 2;
  const top = Math.ceil(upright ? 23 : across + 8);
  const box = { left, top, cellWidth, cellHeight };
  const size = [left + cellWidth * grid.width, top + cellHeight * grid.height].map(Math.ceil);
  const scale = Math.max(2, window.devicePixelRatio || 1);
  [canvas.width, canvas.height] = size.map((length) => length * scale);
  canvas.style.width = `${size[0]}px`;
  canvas.style.aspectRatio = size.join(" / ");
  context.scale(scale, scale);

  const ramp = shades().map(rgb);
  const gap = Math.min(cellWidth, cellHeight) >= 9 ? 1 : 0;
  for (let row = 0; row < grid.height; row++) {
    for (let column = 0; column < grid.width; column++) {
      const step = grid.step(grid.value(row, column));
      const [x, y] = [left + column * cellWidth, top + row * cellHeight];
      const over = gap ? -gap : 0.35; // cells without a gap overlap a little, so that no seam shows
      context.fillStyle = step === null ? style("--missing") : ramp[step];
      context.fillRect(x, y, cellWidth + over, cellHeight + over);
      if (step === null && gap) strike(context, x, y, cellWidth - 1, cellHeight - 1);
    }
  }

  context.font = font;
  context.fillStyle = style("--muted");
  context.textBaseline = "middle";
  context.textAlign = "right";
  every(grid.height, cellHeight, (row) => {
    context.fillText(fitted(context, grid.rowLabels[row]), left - 6, top + (row + 0.5) * cellHeight);
  });
  every(grid.width, cellWidth, (column) => {
    context.save();
    context.translate(left + (column + 0.5) * cellWidth, top - (upright ? 13 : 5));
    if (!upright) context.rotate(-Math.PI / 2);
    context.textAlign = upright ? "center" : "left";
    context.fillText(fitted(context, grid.columnLabels[column]), 0, 0);
    context.restore();
  });
  return box;
}

function strike(context, x, y, width, height) {
  context.strokeStyle = style("--muted");
  context.beginPath();
  context.moveTo(x, y + height);
  context.lineTo(x + width, y);
  context.stroke();
}

function every(count, size, label) {
  const stride = Math.max(1, Math.ceil(NARROWEST_LABEL / size));
  for (let index = 0; index < count; index += stride) label(index);
}

function fitted(context, text) {
  if (context.measureText(text).width <= LONGEST_LABEL) return text;
  let length = text.length;
  while (length && context.measureText(text.slice(0, length) + "…").width > LONGEST_LABEL) length--;
  return text.slice(0, length) + "…";
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// A large heatmap in its host: by pointer or arrow keys each cell says its number.
class LargeHeatmap {
  constructor(host, grid, { height = 640, choose = null } = {}) {
    Object.assign(this, { host, grid, height, choose, row: 0, column: 0 });
    this.canvas = element("canvas", "large");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "heatmap");
    const keys = "arrow keys go through the cells" + (choose ? ", Enter chooses the row" : "");
    this.canvas.setAttribute("aria-label", `${grid.title}, ${grid.of.join(" by ")}; ${keys}`);
    this.cursor = element("div", "cursor");
    this.chosen = element("div", "chosen-row");
    this.tip = element("div", "tip");
    this.tip.setAttribute("role", "status");
    this.tip.append(element("strong", ""), element("span", ""));
    const frame = element("div", "frame");
    frame.append(this.canvas, this.chosen, this.cursor);
    host.replaceChildren(frame, this.legend(), this.tip);
    this.leave();
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.leave());
    this.canvas.addEventListener("click", (event) => this.point(event) && choose?.(this.row));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.canvas.matches(":focus-visible") && this.show());
    this.canvas.addEventListener("blur", () => this.leave());
    this.observer = new ResizeObserver(() => host.clientWidth !== this.width && this.draw());
    this.observer.observe(host);
    this.draw();
  }

  remove() {
    this.observer.disconnect();
    this.host.replaceChildren();
  }

  legend() {
    const legend = element("div", "scale");
    const { kind, low, high, floored } = this.grid;
    legend.append(
      element("span", "", `${kind === "attention" ? "weight" : "log-probability"} ${floored ? "≤ " : ""}${rounded(low)}`),
      element("i", ""),
      element("span", "", rounded(high)),
    );
    return legend;
  }

  draw() {
    this.width = this.host.clientWidth;
    if (!this.width) return; // not to be seen yet
    this.box = paintLabelled(this.canvas, this.grid, this.width, this.height);
    this.mark();
  }

  point(event) {
    const { left, top, cellWidth, cellHeight } = this.box;
    const column = Math.floor((event.offsetX - left) / cellWidth);
    const row = Math.floor((event.offsetY - top) / cellHeight);
    if (row < 0 || column < 0 || row >= this.grid.height || column >= this.grid.width) {
      this.leave();
      return false;
    }
    [this.row, this.column] = [row, column];
    this.show();
    return true;
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.choose?.(this.row);
    } else if (event.key in moves) {
      event.preventDefault();
      const [down, right] = moves[event.key];
      this.row = Math.min(this.grid.height - 1, Math.max(0, this.row + down));
      this.column = Math.min(this.grid.width - 1, Math.max(0, this.column + right));
      this.show();
    }
  }

  show() {
    const [number, pair] = this.grid.words(this.row, this.column);
    [this.tip.firstChild.textContent, this.tip.lastChild.textContent] = [number, pair];
    this.tip.hidden = this.cursor.hidden = false;
    const { left, top, cellWidth, cellHeight } = this.box;
    const [x, y] = [left + this.column * cellWidth, top + this.row * cellHeight];
    place(this.cursor, x, y, cellWidth, cellHeight);
    const page = this.canvas.getBoundingClientRect();
    const { width, height } = this.tip.getBoundingClientRect();
    const below = page.top + y + cellHeight + 10;
    const above = page.top + y - height - 10;
    this.tip.style.left = `${Math.max(8, Math.min(page.left + x + cellWidth / 2 - width / 2, document.documentElement.clientWidth - width - 8))}px`;
    this.tip.style.top = `${above > 4 ? above : below}px`;
  }

  leave() {
    this.tip.hidden = this.cursor.hidden = true;
  }

  // Mark the row that was chosen.
  mark(row = this.marked ?? null) {
    this.marked = row;
    this.chosen.hidden = row === null;
    if (row === null || !this.box) return;
    const { left, top, cellWidth, cellHeight } = this.box;
    place(this.chosen, left, top + row * cellHeight, cellWidth * this.grid.width, cellHeight);
  }
}

function place(mark, x, y, width, height) {
  Object.assign(mark.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
}
