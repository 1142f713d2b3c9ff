// The dialog of one attention map: its heatmap, and from token to token.

const TOP = 5; // tokens that are listed with their weights

class AttentionDialog {
  constructor() {
    this.dialog = document.getElementById("attention");
    const find = (selector) => this.dialog.querySelector(selector);
    this.title = find("h2");
    this.about = find("header .about");
    this.note = find(".shrunk");
    this.host = find(".heatmap-host");
    this.from = find(".tokens-from");
    this.to = find(".tokens-to");
    this.top = find(".top");
    this.buttons = { previous: find(".previous"), next: find(".next") };
    this.buttons.previous.addEventListener("click", () => this.step(-1));
    this.buttons.next.addEventListener("click", () => this.step(1));
    find(".close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => this.isBeside(event) && this.dialog.close());
    this.dialog.addEventListener("close", () => this.heatmap.remove());
    this.from.addEventListener("keydown", (event) => this.key(event));
  }

  open(place) {
    this.dialog.showModal();
    this.show(place);
    this.dialog.scrollTop = 0;
  }

  isBeside(event) {
    const { left, right, top, bottom } = this.dialog.getBoundingClientRect();
    const { clientX: x, clientY: y, detail: presses } = event;
    return presses > 0 && (x < left || x > right || y < top || y > bottom); // a key presses a button at 0, 0
  }

  // The places of this run's attention maps; the arrows go through them.
  siblings() {
    const run = DATA.heatmaps[this.place].run;
    return DATA.heatmaps.flatMap((item, place) => (item.run === run && item.kind === "attention" ? [place] : []));
  }

  step(by) {
    const places = this.siblings();
    const next = places[places.indexOf(this.place) + by];
    if (next !== undefined) this.show(next);
  }

  show(place) {
    this.place = place;
    const grid = (this.grid = Grid.at(place));
    const run = DATA.runs.length > 1 ? `${DATA.runs[grid.run]}: ` : "";
    this.title.textContent = run + grid.title;
    this.about.textContent = grid.about;
    this.note.textContent = this.shrunk();
    this.note.hidden = !this.note.textContent;
    const places = this.siblings();
    this.buttons.previous.disabled = place === places[0];
    this.buttons.next.disabled = place === places[places.length - 1];
    this.heatmap?.remove();
    this.heatmap = new LargeHeatmap(this.host, grid, {
      height: Math.max(320, window.innerHeight - (this.note.hidden ? 190 : 246)),
      choose: (row) => this.choose(row),
    });
    this.list();
    this.choose(0);
  }

  shrunk() {
    const { of, shape, block } = this.grid;
    if (of.join() === shape.join()) return "";
    return `${of.join(" by ")} weights, made smaller: each cell is the largest of a block of ${block.join(" by ")}.`;
  }

  // The tokens to choose from; where others are attended to, those beside them.
  list() {
    const { grid } = this;
    this.sameTokens = grid.rows === grid.columns;
    const buttons = grid.rowLabels.map((label, row) => {
      const button = element("button", "token-button", label);
      button.type = "button";
      button.setAttribute("aria-label", grid.rowLabel(row));
      button.addEventListener("click", () => this.choose(row));
      return button;
    });
    this.from.replaceChildren(...buttons);
    this.to.hidden = this.sameTokens;
    this.to.replaceChildren(...(this.sameTokens ? [] : grid.columnLabels.map((label) => element("span", "token-button", label))));
  }

  choose(row) {
    const { grid } = this;
    this.row = row;
    this.heatmap.mark(row);
    [...this.from.children].forEach((button, index) => {
      button.setAttribute("aria-pressed", String(index === row));
      button.tabIndex = index === row ? 0 : -1; // Tab goes to the chosen one, arrows to the others
    });
    const ramp = shades();
    [...(this.sameTokens ? this.from : this.to).children].forEach((token, column) => {
      const step = grid.step(grid.value(row, column));
      token.style.backgroundColor = step === null ? "" : rgb(ramp[step]);
      token.style.color = step === null ? "" : inkOn(ramp[step]);
    });
    this.listGreatest(row);
  }

  listGreatest(row) {
    const { grid } = this;
    const weights = Array.from({ length: grid.width }, (_, column) => [grid.value(row, column), column]);
    const greatest = weights.filter(([weight]) => weight > 0).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, TOP);
    const list = element("ol", "");
    for (const [weight, column] of greatest) {
      const item = element("li", "");
      item.style.setProperty("--share", weight / grid.high);
      item.append(element("span", "token-name", grid.columnLabel(column)), element("i", ""), element("span", "", weight.toPrecision(3)));
      list.append(item);
    }
    const heading = element("p", "", "");
    heading.append(element("strong", "", grid.rowLabel(row)), greatest.length ? " attends most to" : " attends to nothing");
    this.top.replaceChildren(heading, list);
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.choose(Math.min(this.grid.height - 1, Math.max(0, this.row + by)));
    this.from.children[this.row].focus();
  }

  redraw() {
    if (!this.dialog.open) return;
    this.heatmap.draw();
    this.choose(this.row);
  }
}
