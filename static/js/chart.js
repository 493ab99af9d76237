/* Time charts with uPlot in the colours of the tokens. An element with data-chart gets its lines from data-src every
   data-poll seconds; what stands beside it in [data-figure] is brought up to date with it. A line `on` another is drawn
   on top of it; `mark` draws a triangle at the foot of each bucket in which something was counted. Arrow keys move the
   read-out; Escape ends it. */
(() => {
  const LINES = {
    capacity: [
      { key: "could", name: "could have", token: "could", dash: [5, 4], step: true, swatch: "dash" },
      { key: "have", name: "have", token: "have", step: true, width: 1.8, swatch: "line" },
      { key: "sold", name: "sold", token: "sold", step: true, width: 1.8, swatch: "line" },
      { key: "reserved", name: "used, reserved", short: "reserved", token: "used", fill: true, swatch: "" },
      { key: "best", name: "used, best-effort", short: "best-effort", token: "best", fill: true, on: "reserved", swatch: "" },
      { key: "lent", name: "lent", token: "lent", hatch: true, on: "reserved", quiet: true, swatch: "hatch" },
      { key: "offered", name: "offered", token: "used", dash: [2, 3], swatch: "dots" },
      { key: "breached", name: "breached", unit: "min", token: "breached", mark: true, swatch: "tri" },
    ],
    accelerators: [
      { key: "have", name: "have", token: "have", step: true, width: 1.8, swatch: "line" },
      { key: "sold", name: "sold", token: "sold", step: true, width: 1.8, swatch: "line" },
      { key: "used", name: "used", token: "used", step: true, fill: true, swatch: "" },
    ],
    usage: [
      { key: "sold", name: "reserved", token: "sold", step: true, width: 1.8, swatch: "line" },
      { key: "reserved", name: "used, reserved", short: "used", token: "used", fill: true, swatch: "" },
      { key: "best", name: "used, best-effort", short: "best-effort", token: "best", fill: true, on: "reserved", swatch: "" },
      { key: "breached", name: "breached", unit: "min", token: "breached", mark: true, swatch: "tri" },
    ],
    refusals: [
      { key: "limit", name: "limits", token: "warn", fill: true, swatch: "" },
      { key: "room", name: "no room", token: "bad", fill: true, on: "limit", swatch: "" },
      { key: "other", name: "other", token: "ink-3", fill: true, on: "room", swatch: "" },
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
  /* A tick of an axis that spans days: the day, with its hour only where that is not midnight. */
  const day = (seconds) => {
    const at = new Date(seconds * 1000), isMidnight = at.getHours() === 0 && at.getMinutes() === 0;
    return at.toLocaleString("en-GB", { day: "numeric", month: "short", ...(isMidnight ? {} : { hour: "2-digit", minute: "2-digit", hour12: false }) });
  };
  const translucent = (color, share) => {
    const [r, g, b] = [1, 3, 5].map((from) => parseInt(color.slice(from, from + 2), 16));
    return `rgb(${r} ${g} ${b} / ${share})`;
  };

  const hatched = (color) => {
    const size = 6 * devicePixelRatio, tile = make("canvas");
    tile.width = tile.height = size;
    const context = tile.getContext("2d");
    context.strokeStyle = color;
    context.lineWidth = 1.2 * devicePixelRatio;
    for (const from of [-size, 0, size]) {
      context.moveTo(from, size);
      context.lineTo(from + size, 0);
    }
    context.stroke();
    return context.createPattern(tile, "repeat");
  };

  class Chart {
    constructor(box) {
      this.box = box;
      this.lines = LINES[box.dataset.chart];
      this.places = new Map(this.lines.map((line, index) => [line.key, index + 1]));
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
      this.plot.setAttribute("aria-label", `${box.dataset.title}: loading`);
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
      this.drawn = this.stacked();
      for (const cell of this.box.parentElement.querySelectorAll("[data-figure]")) {
        const text = answer.figures?.[cell.dataset.figure];
        if (text != null && cell.textContent !== text) cell.textContent = text;
      }
      this.isEmpty = this.data.slice(1).every((line) => line.every((value) => value == null));
      if (this.isEmpty) { this.drop(); this.say("Nothing is known of this range yet. The loops write it down as they look."); return; }
      if (this.chart) { this.chart.setData(this.drawn); this.readOut(this.chart.cursor.idx); } else this.draw();
      this.describe();
    }
    stacked() {
      const drawn = [...this.data];
      for (const line of this.lines) {
        if (!line.on) continue;
        const index = this.places.get(line.key), base = drawn[this.places.get(line.on)];
        drawn[index] = this.data[index].map((value, at) => value == null ? null : value + (base[at] ?? 0));
      }
      return drawn;
    }
    describe() {
      const last = this.lines.map((line, index) => line.mark ? `${line.name} ${shown(this.sum(index + 1))} ${line.unit} in all` : `${line.name} ${shown(this.last(index + 1))}`).join(", ");
      this.plot.setAttribute("aria-label", `${this.box.dataset.title}, in ${this.unit}. Now: ${last}.`);
    }
    last(index) { return this.data[index].findLast((value) => value != null) ?? null; }
    lastDrawn(index) { return this.drawn[index].findLast((value) => value != null) ?? null; }
    sum(index) { return this.data[index].reduce((sum, value) => sum + (value ?? 0), 0); }
    say(text) {
      this.note.textContent = text;
      this.note.hidden = false;
      this.plot.setAttribute("aria-label", `${this.box.dataset.title}: ${text}`);
    }
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
        legend: { show: false }, scales: { x: { time: true }, marks: { auto: false, range: () => [0, 1] }, y: { range: (_, low, high) => [0, Math.max(1e-6, high) * 1.08] } },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        axes: [
          { stroke: ink, font, grid: { show: false }, ticks: { show: false }, size: 24, space: isNarrow ? 80 : 90, values: (_, ticks) => ticks.map((tick) => span > 2 * 86400 ? day(tick) : clock(tick, false)) },
          { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 44, space: 44, values: (_, ticks) => ticks.map(short) },
        ],
        bands: this.lines.filter((line) => line.on).map((line) => ({ series: [this.places.get(line.key), this.places.get(line.on)] })),
        series: [{}, ...this.lines.map((line) => {
          const color = token(line.token);
          if (line.mark) return { scale: "marks", points: { show: false }, paths: () => null };
          const fill = line.hatch ? hatched(color) : line.fill ? translucent(color, .2) : undefined;
          return { stroke: color, width: line.hatch ? 0 : line.width ?? 1.6, dash: line.dash, points: { show: false }, fill, paths: line.step ? stepped : undefined };
        })],
        hooks: { setCursor: [(chart) => this.readOut(chart.cursor.idx)], draw: [(chart) => { this.marks(chart); if (!isNarrow) this.label(chart, font); }] },
      }, this.drawn, this.plot);
      this.readOut(null);
    }
    marks(chart) {
      const context = chart.ctx, ratio = devicePixelRatio, foot = chart.bbox.top + chart.bbox.height;
      const half = (this.data[0][1] - this.data[0][0]) / 2;
      for (const line of this.lines.filter((one) => one.mark)) {
        context.save();
        context.fillStyle = token(line.token);
        this.data[this.places.get(line.key)].forEach((value, at) => {
          if (!value) return;
          const x = chart.valToPos(this.data[0][at] + half, "x", true);
          context.beginPath();
          context.moveTo(x - 5 * ratio, foot);
          context.lineTo(x, foot - 9 * ratio);
          context.lineTo(x + 5 * ratio, foot);
          context.fill();
        });
        context.restore();
      }
    }
    label(chart, font) {
      const context = chart.ctx, ratio = devicePixelRatio;
      const ends = this.lines.map((line, index) => [this.last(index + 1), line, index + 1]).filter(([value, line]) => value != null && !line.mark && !(line.quiet && !value))
        .map(([value, line, index]) => [chart.valToPos(this.lastDrawn(index), "y", true), value, line]).sort((a, b) => b[0] - a[0]);
      context.save();
      context.font = font.replace("11px", `500 ${11 * ratio}px`);
      context.textBaseline = "middle";
      context.textAlign = "left";
      let floor = Infinity;
      for (const [y, value, line] of ends) {
        floor = Math.min(y, floor - 14 * ratio);
        context.fillStyle = token(line.token);
        context.fillText(`${line.short ?? line.name} ${shown(value)}`, chart.bbox.left + chart.bbox.width + 8 * ratio, floor);
      }
      context.restore();
    }
    readOut(index) {
      const times = this.data[0], isOver = index != null;
      this.values.forEach((element, at) => {
        const { unit } = this.lines[at], value = this.data[at + 1][isOver ? index : 0];
        element.textContent = isOver ? shown(value) + (unit && value != null ? ` ${unit}` : "") : "";
      });
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
