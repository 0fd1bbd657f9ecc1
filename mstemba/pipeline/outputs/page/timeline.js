// Drawing of the timeline: only what is visible, at the resolution of the screen.

const RULER_HEIGHT = 26;
const BANDS = { items: [3, 10], shade: [14, 9], labels: [24, 7] }; // y and height in a row, CSS pixels
const TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

class Timeline {
  constructor(app) {
    this.app = app;
    this.rowHeight = app.truth ? 34 : 26;
    this.rows = [];
    this.frame = 0;
    this.scroller = byId("scroller");
    this.lane = byId("lane");
    this.labels = byId("labels");
    this.canvas = byId("canvas");
    this.playheads = [...document.querySelectorAll(".playhead")];
    document.documentElement.style.setProperty("--row", `${this.rowHeight}px`);
    document.documentElement.style.setProperty("--ruler", `${RULER_HEIGHT}px`);
    this.scroller.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.scroller);
    this.useTheme();
  }

  /** Read the colours from the style sheet, which a canvas does not use by itself. */
  useTheme() {
    const probe = document.body.appendChild(createElement("i", { className: "swatch" }));
    const colour = (name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    };
    const names = ["detected", "labelled", "corrected", "text", "quiet", "line", "stripe", "background"];
    this.colours = Object.fromEntries(names.map((name) => [name, colour(name)]));
    const parts = (name) => this.colours[name].match(/[\d.]+/g).slice(0, 3).map(Number);
    this.ink = parts("text");
    this.pixels = Object.fromEntries(["detected", "labelled", "corrected"].map((name) =>
      [name, new Uint32Array(new Uint8Array([...parts(name), 255]).buffer)[0]]));
    probe.remove();
    this.draw();
  }

  setRows(ids) {
    const names = ids.map((id) => this.app.corrections.classes[id]);
    const same = ids.length === this.rows.length && ids.every((id, i) => id === this.rows[i])
      && names.every((name, i) => name === this.names[i]);
    this.rows = ids;
    this.names = names;
    const focused = this.labelFocused;
    if (!same) {
      this.labels.replaceChildren(...ids.map((id, i) => this.createLabel(id, names[i])));
    }
    this.markRow();
    if (focused) this.focusMarked();
    this.draw();
  }

  get labelFocused() {
    return this.labels.contains(document.activeElement);
  }

  focusMarked() {
    const row = this.rows.indexOf(this.app.markedClass);
    (this.labels.children[row]?.firstChild || this.scroller).focus({ preventScroll: true });
  }

  createLabel(id, name) {
    const button = createElement("button", { type: "button", textContent: formatName(name), dir: "auto", title: formatName(name) });
    button.addEventListener("click", () => this.app.markClass(id));
    return createElement("li", {}, button);
  }

  /** Show which class is marked; Tab reaches only this one. */
  markRow() {
    const marked = Math.max(0, this.rows.indexOf(this.app.markedClass));
    [...this.labels.children].forEach((item, i) => {
      const isMarked = this.rows[i] === this.app.markedClass;
      item.classList.toggle("marked", isMarked);
      item.firstChild.tabIndex = i === marked ? 0 : -1;
      item.firstChild.setAttribute("aria-pressed", String(isMarked));
    });
  }

  revealRow(classId) {
    const row = this.rows.indexOf(classId);
    if (row < 0) return;
    const top = row * this.rowHeight, visible = this.scroller.clientHeight - RULER_HEIGHT;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + this.rowHeight > this.scroller.scrollTop + visible) {
      this.scroller.scrollTop = top + this.rowHeight - visible;
    }
  }

  x(time) {
    const { view } = this.app;
    return ((time - view.from) / view.span) * this.width;
  }

  timeAt(x) {
    const { view } = this.app;
    return view.from + (x / this.width) * view.span;
  }

  get width() {
    return this.lane.clientWidth || 1;
  }

  /** Return the time, class, segment and its edge at a point of the canvas. */
  locate(x, y) {
    const inRows = y + this.scroller.scrollTop;
    const classId = this.rows[Math.floor(inRows / this.rowHeight)];
    const inBand = inRows % this.rowHeight < BANDS.shade[0];
    const time = this.timeAt(x);
    const near = (edge) => Math.abs(this.x(edge) - x);
    const mine = this.app.corrections.items.filter((item) => item.classId === classId)
      .map((item) => ({ item, from: this.app.view.place(item)[0], to: this.app.view.place(item)[1] }));
    // Of overlapping ones prefer the selected, then the shortest.
    const rank = ({ item, from, to }) => (item === this.app.selected ? -1 : to - from);
    const best = (found) => found.sort((a, b) => rank(a) - rank(b))[0] || null;
    const reach = ({ from, to }) => Math.min(6, Math.max(2, (this.x(to) - this.x(from)) / 3));
    // A mark has no edges.
    const inside = best(mine.filter(({ from, to }) => (from === to ? near(from) <= 5 : from <= time && time <= to)));
    const touched = inside || best(mine.filter(({ from, to }) => Math.min(near(from), near(to)) <= 5));
    let edge = null;
    if (touched && touched.from < touched.to && inBand) {
      const limit = inside ? reach(touched) : 5;
      if (near(touched.from) <= limit) edge = "start";
      else if (near(touched.to) <= limit) edge = "end";
    }
    return { time, classId, inBand, item: (inside || (edge ? touched : null))?.item ?? null, edge };
  }

  /** Paint once in the next frame. */
  draw() {
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const below = this.scroller.clientHeight - RULER_HEIGHT;
    const height = clamp(below, 0, this.rows.length * this.rowHeight);
    this.lane.style.height = `${height}px`;
    this.paintRuler(resizeCanvas(byId("ruler"), this.width, RULER_HEIGHT));
    this.paintRows(resizeCanvas(this.canvas, this.width, height), height);
    this.paintOverview();
    this.movePlayhead(this.app.player.time);
  }

  movePlayhead(time) {
    for (const playhead of this.playheads) playhead.style.transform = `translateX(${this.x(time)}px)`;
  }

  paintRuler(pen) {
    const { view } = this.app;
    const step = TICKS.find((tick) => (tick / view.span) * this.width >= 70) || TICKS.at(-1);
    pen.fillStyle = this.colours.quiet;
    pen.font = "11px system-ui, sans-serif";
    for (let i = Math.floor(view.from / step); i * step <= view.to; i++) {
      const x = Math.round(this.x(i * step));
      pen.fillRect(x, RULER_HEIGHT - 6, 1, 6);
      pen.fillText(formatTime(i * step, step < 1 ? 1 : 0), x + 3, RULER_HEIGHT - 9);
    }
  }

  paintRows(pen, height) {
    const top = this.scroller.scrollTop;
    const first = Math.floor(top / this.rowHeight);
    const last = Math.min(this.rows.length, Math.ceil((top + height) / this.rowHeight));
    const labels = this.app.truthByClass, items = this.app.itemsByClass;
    const visible = this.rows.slice(first, last);
    visible.forEach((id, i) => {
      const y = (first + i) * this.rowHeight - top;
      if (id === this.app.markedClass) {
        pen.fillStyle = this.colours.stripe;
        pen.fillRect(0, y, this.width, this.rowHeight);
      }
      pen.fillStyle = this.colours.line;
      pen.fillRect(0, y + this.rowHeight - 1, this.width, 1);
    });
    this.paintShades(pen, visible, first * this.rowHeight - top);
    visible.forEach((id, i) => {
      const y = (first + i) * this.rowHeight - top;
      this.paintBars(pen, labels.get(id), y + BANDS.labels[0], BANDS.labels[1]);
      const list = this.app.draft
        ? (items.get(id) || []).filter((item) => item !== this.app.draft.item)
        : items.get(id);
      this.paintBars(pen, list, y + BANDS.items[0], BANDS.items[1]);
      if (this.app.draft && this.app.draft.segment.classId === id) {
        this.paintBars(pen, [this.app.draft.segment], y + BANDS.items[0], BANDS.items[1]);
      }
    });
  }

  kindOf({ corrected, labelled }) {
    return corrected ? "corrected" : labelled ? "labelled" : "detected";
  }

  paintBars(pen, segments, y, height) {
    const { view, selected } = this.app;
    for (const segment of segments || []) {
      const [from, to] = view.place(segment), more = from === to ? 2 : 0; // a mark shows within a segment
      if (to < view.from || from > view.to) continue;
      const left = clamp(this.x(from), -4, this.width - 2), right = Math.min(this.width + 4, this.x(to));
      const width = Math.max(2, right - left - 0.5);
      pen.fillStyle = this.colours[this.kindOf(segment)];
      pen.fillRect(left, y - more, width, height + 2 * more);
      if (segment.corrected) {
        // A line through it distinguishes it without colour.
        pen.fillStyle = this.colours.background;
        pen.fillRect(left, y + height / 2 - 1, width, 2);
      }
      if (segment === selected || segment === this.app.draft?.segment) {
        pen.strokeStyle = this.colours.text;
        pen.lineWidth = 2;
        pen.strokeRect(left - 1, y - more - 1, width + 2, height + 2 * more + 2);
      }
    }
  }

  /** Paint probabilities as shade: the highest of the rows in a pixel. */
  paintShades(pen, ids, y) {
    const { scores } = this.app;
    const columns = Math.round(this.width * devicePixelRatio);
    if (!ids.length || !scores.levels.size) return;
    const from = new Int32Array(columns), to = new Int32Array(columns).fill(-1);
    for (let x = 0; x < columns; x++) {
      const time = this.timeAt(x / devicePixelRatio);
      if (time >= scores.bounds.at(-1)) break; // the scores may end before the video
      from[x] = Math.max(0, scores.rowAt(time));
      to[x] = scores.rowAt(this.timeAt((x + 1) / devicePixelRatio) - 1e-9);
    }
    const image = new ImageData(columns, ids.length);
    ids.forEach((id, row) => {
      const levels = scores.levels.get(id);
      if (!levels) return;
      for (let x = 0, at = 4 * row * columns; x < columns; x++, at += 4) {
        let peak = 0;
        for (let i = from[x]; i <= to[x]; i++) if (levels[i] > peak) peak = levels[i];
        [image.data[at], image.data[at + 1], image.data[at + 2]] = this.ink;
        image.data[at + 3] = (255 * peak) / LEVELS;
      }
    });
    this.shades ||= document.createElement("canvas");
    this.shades.width = columns;
    this.shades.height = ids.length;
    this.shades.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    ids.forEach((id, row) => {
      const [offset, height] = BANDS.shade;
      pen.drawImage(this.shades, 0, row, columns, 1, 0, y + row * this.rowHeight + offset, this.width, height);
    });
  }

  /** Paint all segments of the classes shown over the whole video, and the part in view. */
  paintOverview() {
    const canvas = byId("overview"), { view, truthByClass, itemsByClass } = this.app;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    const pen = resizeCanvas(canvas, width, height);
    const x = (time) => (time / view.duration) * width;
    // Pixel by pixel: the canvas takes many times as long for a hundred thousand small bars.
    const image = new ImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
    const column = (time) => clamp(Math.round((time / view.duration) * canvas.width), 0, canvas.width);
    const line = (row) => Math.floor((row / this.rows.length) * canvas.height);
    const gap = canvas.height >= 3 * this.rows.length ? 1 : 0; // between classes, where there is room
    this.rows.forEach((id, row) => {
      const first = line(row), last = Math.max(first + 1, line(row + 1) - gap);
      for (const segment of itemsByClass.get(id) || truthByClass.get(id) || []) {
        const colour = this.pixels[this.kindOf(segment)];
        const [from, to] = view.place(segment);
        const left = Math.min(column(from), canvas.width - 1), right = Math.max(column(to), left + 1);
        for (let y = first; y < last; y++) pixels.fill(colour, y * canvas.width + left, y * canvas.width + right);
      }
    });
    pen.putImageData(image, 0, 0);
    pen.fillStyle = this.colours.background;
    pen.globalAlpha = 0.65;
    pen.fillRect(0, 0, x(view.from), height);
    pen.fillRect(x(view.to), 0, width, height);
    pen.globalAlpha = 1;
    pen.strokeStyle = this.colours.text;
    pen.lineWidth = 2;
    const frame = Math.max(4, x(view.span)); // never too narrow to be seen
    pen.strokeRect(Math.min(x(view.from), width - frame) + 1, 1, frame - 2, height - 2);
  }
}

/** Clear a canvas and set its size in CSS pixels, in which drawing counts. */
function resizeCanvas(canvas, width, height) {
  const ratio = devicePixelRatio;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return pen;
}
