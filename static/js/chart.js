/* Time charts with uPlot in the colours of the tokens. An element with data-chart="capacity" or "usage" gets its lines
   from data-src every data-poll seconds. Arrow keys move the read-out; Escape ends it. */
(() => {
  const LINES = {
    capacity: [
      { key: "could", name: "could have", token: "could", dash: [5, 4], step: true, swatch: "dash" },
      { key: "have", name: "have", token: "have", step: true, width: 1.8, swatch: "line" },
      { key: "sold", name: "sold", token: "sold", step: true, width: 1.8, swatch: "line" },
      { key: "used", name: "used", token: "used", fill: true, swatch: "" },
      { key: "offered", name: "offered", token: "used", dash: [2, 3], swatch: "dots" },
    ],
    usage: [
      { key: "sold", name: "reserved", token: "sold", step: true, width: 1.8, swatch: "line" },
      { key: "used", name: "used", token: "used", fill: true, swatch: "" },
    ],
    "usage-mu": [{ key: "mu", name: "used", token: "used", fill: true, swatch: "" }],
    "usage-tokens": [
      { key: "input_tokens", name: "input", token: "ink-3", width: 1.8, swatch: "line" },
      { key: "output_tokens", name: "output", token: "used", fill: true, swatch: "" },
    ],
    "usage-requests": [
      { key: "requests", name: "requests", token: "used", fill: true, swatch: "" },
      { key: "failed", name: "failed", token: "warn", width: 1.8, swatch: "line" },
    ],
  };
  const HEIGHT = 260, NARROW = 560;
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const shown = (value) => value == null ? "–" : value.toLocaleString("en-GB", { maximumFractionDigits: Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0 });
  /* An axis has room for four figures. */
  const short = (value) => Math.abs(value) >= 1e6 ? `${shown(value / 1e6)} M` : Math.abs(value) >= 1e4 ? `${shown(value / 1e3)} k` : shown(value);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text != null) element.textContent = text;
    return element;
  };
  const clock = (seconds, withDay) => {
    const at = new Date(seconds * 1000);
    const form = { hour: "2-digit", minute: "2-digit", ...(withDay ? { weekday: "short", day: "numeric", month: "short" } : {}) };
    return at.toLocaleString("en-GB", { ...form, hour12: false });
  };
  const translucent = (color, share) => {
    const [r, g, b] = [1, 3, 5].map((from) => parseInt(color.slice(from, from + 2), 16));
    return `rgb(${r} ${g} ${b} / ${share})`;
  };

  class Chart {
    constructor(box) {
      this.box = box;
      this.lines = LINES[box.dataset.chart];
      this.legend = make("ul", "legend");
      this.values = this.lines.map((line) => {
        const item = make("li");
        item.append(make("span", `sw ${line.swatch} c-${line.token}`), line.name, make("b"));
        this.legend.append(item);
        return item.lastChild;
      });
      this.when = make("li", "at");
      this.legend.append(this.when);
      this.plot = make("div", "plot");
      this.plot.tabIndex = 0;
      this.plot.setAttribute("role", "img");
      this.note = make("p", "plot-note", "Loading");
      this.plot.append(this.note);
      box.replaceChildren(this.legend, this.plot);
      this.plot.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.fit()).observe(this.plot);
      document.addEventListener("penstock:theme", () => this.draw());
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
      document.addEventListener("visibilitychange", () => { if (!document.hidden) this.load(); });
      setInterval(() => { if (!document.hidden) this.load(); }, Number(box.dataset.poll) * 1000);
      this.load();
    }
    async load() {
      try {
        const answer = await fetch(this.box.dataset.src, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(8000) });
        if (!answer.ok) throw new Error(String(answer.status));
        this.take(await answer.json());
      } catch {
        if (!this.data) this.say("The figures could not be loaded; this is tried again on its own.");
      }
    }
    take(answer) {
      this.unit = answer.unit;
      this.data = [answer.t, ...this.lines.map((line) => answer[line.key])];
      this.isEmpty = this.data.slice(1).every((line) => line.every((value) => value == null));
      if (this.isEmpty) { this.drop(); this.say("No samples in this range yet. The observe loop writes one each second."); return; }
      if (this.chart) { this.chart.setData(this.data); this.readOut(this.chart.cursor.idx); } else this.draw();
      this.describe();
    }
    describe() {
      const last = this.lines.map((line, index) => `${line.name} ${shown(this.last(index + 1))}`).join(", ");
      this.plot.setAttribute("aria-label", `${this.box.dataset.title}, in ${this.unit}. Now: ${last}.`);
    }
    last(index) {
      const line = this.data[index];
      for (let at = line.length - 1; at >= 0; at--) if (line[at] != null) return line[at];
      return null;
    }
    say(text) { this.note.textContent = text; this.note.hidden = false; }
    drop() { this.chart?.destroy(); this.chart = null; }
    width() { return this.plot.clientWidth - 32; }
    fit() {
      if (this.chart && this.width() > 0 && this.width() !== this.chart.width) this.draw();
    }
    draw() {
      if (!this.data || this.isEmpty) return;
      this.drop();
      this.note.hidden = true;
      const font = `11px ${token("font")}`, ink = token("ink-3"), grid = token("line"), isNarrow = this.width() < NARROW;
      const stepped = uPlot.paths.stepped({ align: 1 });
      const span = this.data[0].at(-1) - this.data[0][0];
      this.chart = new uPlot({
        width: this.width(), height: HEIGHT, padding: [8, isNarrow ? 8 : 104, 0, 0],
        legend: { show: false }, scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(1e-6, high) * 1.08] } },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        axes: [
          { stroke: ink, font, grid: { show: false }, ticks: { show: false }, size: 24, space: isNarrow ? 80 : 90, values: (_, ticks) => ticks.map((tick) => clock(tick, span > 2 * 86400)) },
          { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 44, space: 44, values: (_, ticks) => ticks.map(short) },
        ],
        series: [{}, ...this.lines.map((line) => {
          const color = token(line.token);
          return { stroke: color, width: line.width ?? 1.6, dash: line.dash, points: { show: false }, fill: line.fill ? translucent(color, .2) : undefined, paths: line.step ? stepped : undefined };
        })],
        hooks: { setCursor: [(chart) => this.readOut(chart.cursor.idx)], draw: [(chart) => { if (!isNarrow) this.label(chart, font); }] },
      }, this.data, this.plot);
      this.readOut(null);
    }
    label(chart, font) {
      const context = chart.ctx, ratio = devicePixelRatio;
      const ends = this.lines.map((line, index) => [this.last(index + 1), line]).filter(([value]) => value != null)
        .map(([value, line]) => [chart.valToPos(value, "y", true), value, line]).sort((a, b) => b[0] - a[0]);
      context.save();
      context.font = font.replace("11px", `500 ${11 * ratio}px`);
      context.textBaseline = "middle";
      context.textAlign = "left";
      let floor = Infinity;
      for (const [y, value, line] of ends) {
        floor = Math.min(y, floor - 14 * ratio);
        context.fillStyle = token(line.token);
        context.fillText(`${line.name} ${shown(value)}`, chart.bbox.left + chart.bbox.width + 8 * ratio, floor);
      }
      context.restore();
    }
    readOut(index) {
      const times = this.data[0], isOver = index != null;
      this.values.forEach((element, at) => { element.textContent = isOver ? shown(this.data[at + 1][index]) : ""; });
      const zone = window.penstock.zoneName(new Date());
      this.when.textContent = isOver ? `${clock(times[index], true)} ${zone}` : `${clock(times[0], true)} – ${clock(2 * times.at(-1) - times.at(-2), false)} ${zone}`;
    }
    key(event) {
      if (!this.chart) return;
      const size = this.data[0].length, at = this.chart.cursor.idx ?? size - 1;
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: size - 1 }[event.key];
      if (event.key === "Escape") { this.chart.setCursor({ left: -10, top: -10 }); return; }
      if (next == null) return;
      event.preventDefault();
      const index = Math.max(0, Math.min(size - 1, next));
      this.chart.setCursor({ left: this.chart.valToPos(this.data[0][index], "x"), top: 10 });
    }
  }
  for (const box of document.querySelectorAll("[data-chart]")) new Chart(box);
})();
