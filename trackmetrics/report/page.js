// The page: what stands where, dark and light, paper.

const root = document.documentElement;
const hidden = new Set(); // runs that aren't drawn
const dialog = new AttentionDialog();
const tiles = [...document.querySelectorAll(".tile")];
const large = [...document.querySelectorAll(".heatmap-host[data-heatmap]")].map(
  (host) => new LargeHeatmap(host, Grid.at(Number(host.dataset.heatmap))),
);
const curves = [...document.querySelectorAll(".chart")].map((host) => new Curves(host, DATA.charts[Number(host.dataset.chart)], hidden));

function paintTiles() {
  const ramp = shades();
  for (const tile of tiles) {
    const grid = Grid.at(Number(tile.dataset.heatmap));
    const canvas = tile.querySelector("canvas");
    canvas.removeAttribute("style");
    if (root.classList.contains("printing") && !tile.closest(".with-heads")) paintLabelled(canvas, grid, tile.clientWidth - 2, 2000);
    else paintSmall(canvas, grid, ramp);
  }
}

function redraw() {
  paintTiles();
  large.forEach((heatmap) => heatmap.draw());
  curves.forEach((chart) => chart.draw());
  dialog.redraw();
}

tiles.forEach((tile) => tile.addEventListener("click", () => dialog.open(Number(tile.dataset.heatmap))));
paintTiles();

document.querySelectorAll(".chip").forEach((chip) =>
  chip.addEventListener("click", () => {
    const run = Number(chip.dataset.run);
    if (!hidden.delete(run)) hidden.add(run);
    chip.setAttribute("aria-pressed", String(!hidden.has(run)));
    curves.forEach((chart) => chart.draw());
  }),
);

// A link to a run opens its section.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
window.addEventListener("hashchange", openTarget);
openTarget();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// On paper everything is open, light, and as wide as the paper; afterwards as it was.
let closed = null;
function toPaper() {
  if (closed) return;
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => (details.open = true));
  root.classList.add("printing");
  redraw();
}
function fromPaper() {
  closed?.forEach((details) => (details.open = false));
  closed = null;
  root.classList.remove("printing");
  redraw();
}
window.addEventListener("beforeprint", toPaper);
window.addEventListener("afterprint", fromPaper);
matchMedia("print").addEventListener("change", (event) => (event.matches ? toPaper() : fromPaper()));

// Plotly takes longer to start than all else: it does so when the page can be read. One chart at a time, so that the
// page answers between them.
async function drawCurves() {
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
  for (const chart of curves) {
    await aMoment();
    chart.draw();
  }
  root.dataset.ready = "true";
}

const aMoment = () => new Promise((done) => setTimeout(done));

window.addEventListener("load", () => requestAnimationFrame(() => setTimeout(drawCurves)));
