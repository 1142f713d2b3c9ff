// The learning curves, drawn by Plotly.

const MARKED = 40; // epochs up to which each has a dot
const PLOT_HEIGHT = 230;

// Plotly reads some tags in a text; a name from a file is no tag.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const colourOf = (run) => style(`--run-${run}`);

// Of many runs, bands that lie on each other aren't to hide what is below.
const bandOpacity = () => Math.min(0.15, 0.45 / DATA.runs.length);

function figure(value, unit) {
  return value === null ? "–" : String(value) + unit;
}

class Curves {
  constructor(host, chart, hidden) {
    Object.assign(this, { host, chart, hidden, log: false, at: -1 });
    this.plot = host.querySelector(".plot");
    this.said = host.querySelector(".said");
    this.toggle = host.querySelector(".toggle");
    this.epochs = [...new Set(chart.lines.flatMap((line) => line.epochs))].sort((a, b) => a - b);
    this.toggle.addEventListener("click", () => {
      this.log = !this.log;
      this.toggle.setAttribute("aria-pressed", String(this.log));
      this.draw();
    });
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.plot.data && Plotly.Fx.unhover(this.plot));
  }

  draw() {
    if (!window.Plotly) return; // it starts last
    const config = { displayModeBar: false, responsive: false, showTips: false };
    Plotly.react(this.plot, this.traces(), this.layout(), config);
    if (!this.observer) {
      this.observer = new ResizeObserver(() => this.plot.clientWidth !== this.width && this.draw());
      this.observer.observe(this.plot);
    }
  }

  name(line) {
    const parts = DATA.runs.length > 1 ? [DATA.runs[line.run], line.name] : [line.name];
    return parts.filter(Boolean).join(", ");
  }

  lines() {
    return this.chart.lines.filter((line) => !this.hidden.has(line.run));
  }

  traces() {
    const bands = this.chart.bands.filter((band) => !this.hidden.has(band.run)).map((band) => this.band(band));
    const odd = this.lines().filter((line) => line.odd.length).map((line) => this.oddMarks(line));
    return [...bands, ...this.lines().map((line) => this.line(line)), ...odd];
  }

  line(line) {
    const colour = colourOf(line.run);
    const marked = line.epochs.length <= MARKED;
    const sizes = line.epochs.map((_, index) => (index === line.best ? 9 : marked ? 5 : 0));
    return {
      type: "scatter",
      mode: "lines+markers",
      name: plain(this.name(line)),
      x: line.epochs,
      y: line.values,
      text: line.epochs.map((_, index) => this.words(line, index)),
      hovertemplate: `%{text}${this.name(line) ? "" : "<extra></extra>"}`,
      line: { color: colour, width: 2, dash: line.dashed ? "dash" : "solid" },
      marker: { color: sizes.map((size) => (size === 9 ? style("--surface") : colour)), size: sizes, opacity: 1, line: { color: colour, width: sizes.map((size) => (size === 9 ? 2 : 0)) } },
      cliponaxis: false,
    };
  }

  // A value as the file has it; of the gradient norm with the least and greatest of the epoch's steps.
  words(line, index) {
    const band = this.chart.bands.find((item) => item.run === line.run);
    const at = band ? band.epochs.indexOf(line.epochs[index]) : -1;
    const range = at < 0 ? "" : ` (${Number(band.low[at].toPrecision(4))} to ${Number(band.high[at].toPrecision(4))})`;
    return figure(line.values[index], this.chart.unit) + range;
  }

  band(band) {
    const low = this.log ? band.low.map((value, index) => (value > 0 ? value : band.high[index])) : band.low;
    return {
      type: "scatter",
      mode: "lines",
      x: [...band.epochs, ...band.epochs.toReversed()],
      y: [...band.high, ...low.toReversed()],
      fill: "toself",
      fillcolor: colourOf(band.run) + Math.round(bandOpacity() * 255).toString(16).padStart(2, "0"),
      line: { width: 0, color: colourOf(band.run) },
      hoverinfo: "skip",
      showlegend: false,
    };
  }

  // Where a value is NaN or infinite no line can show it: a cross at the foot does.
  oddMarks(line) {
    const name = this.name(line);
    return {
      type: "scatter",
      mode: "markers",
      yaxis: "y2",
      name: plain(name),
      x: line.odd.map(([epoch]) => epoch),
      y: line.odd.map(() => 0.035),
      text: line.odd.map(([, said]) => said),
      hovertemplate: `%{text}${name ? "" : "<extra></extra>"}`,
      marker: { symbol: "x", size: 7, color: colourOf(line.run) },
      cliponaxis: false,
    };
  }

  layout() {
    this.width = this.plot.clientWidth;
    const last = this.epochs[this.epochs.length - 1];
    const axis = { gridcolor: style("--line"), zeroline: false, linecolor: style("--line"), tickcolor: style("--line"), automargin: true };
    const pad = Math.max(0.4, (last - this.epochs[0]) * 0.025);
    return {
      width: this.width,
      height: PLOT_HEIGHT,
      margin: { l: 40, r: 10, t: 10, b: 36 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: style("--sans"), size: 12, color: style("--muted") },
      showlegend: false,
      hovermode: "x unified",
      hoverlabel: { bgcolor: style("--surface"), bordercolor: style("--line"), font: { color: style("--text"), family: style("--sans"), size: 12 }, namelength: 40 },
      dragmode: matchMedia("(hover: hover)").matches ? "zoom" : false,
      xaxis: { ...axis, dtick: roundStep(last), tick0: 0, range: [this.epochs[0] - pad, last + pad], hoverformat: "d", showspikes: true, spikedash: "solid", spikemode: "across", unifiedhovertitle: { text: "epoch %{x}" }, showgrid: false, title: { text: "epoch", standoff: 6 } },
      yaxis: { ...axis, ...this.range(), tickformat: "~g", type: this.log ? "log" : "linear", nticks: 6, ...(this.log ? { dtick: this.logTicks(), minor: {} } : {}) },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    };
  }

  // A level line stands above 0; where there is nothing but crosses there are no figures.
  range() {
    const values = this.lines().flatMap((line) => line.values).filter((value) => value !== null);
    const level = values.length > 0 && values[0] >= 0 && values.every((value) => value === values[0]);
    return { rangemode: level ? "nonnegative" : "normal", showticklabels: values.length > 0 };
  }

  // Powers of ten where the values span them, else 1, 2 and 5 of each.
  logTicks() {
    const values = this.lines().flatMap((line) => line.values).filter((value) => value > 0);
    return Math.log10(Math.max(...values) / Math.min(...values)) > 3 ? 1 : "D2";
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.plot.data) return;
    event.preventDefault();
    this.at = Math.min(this.epochs.length - 1, Math.max(0, this.at + by));
    const epoch = this.epochs[this.at];
    Plotly.Fx.hover(this.plot, { xval: epoch, yval: 0 }, "xy");
    const words = this.lines().flatMap((line) => {
      const index = line.epochs.indexOf(epoch);
      const odd = line.odd.find(([where]) => where === epoch);
      return index < 0 ? [] : [`${this.name(line)} ${odd ? odd[1] : this.words(line, index)}`.trim()];
    });
    this.said.textContent = `epoch ${epoch}: ${words.join("; ")}`;
  }
}

// So far apart that about eight epochs have a tick.
function roundStep(last) {
  const raw = Math.max(1, last / 8);
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw - 1e-9);
}
