// The table of segments, and the form that changes the selected one.

const LIST_ROWS = 100; // of the table at a time, so that the slider stays quick

class SegmentList {
  constructor(app) {
    this.app = app;
    this.first = 0; // of the segments, the one in the first row
    this.body = byId("segments");
    this.segments = [];
    this.lines = new Map();
    byId("earlier").addEventListener("click", () => this.turn(-LIST_ROWS));
    byId("later").addEventListener("click", () => this.turn(LIST_ROWS));
  }

  turn(count) {
    this.first += count;
    this.fill();
    byId("list").scrollTop = 0;
  }

  /** Show the segments of the classes that the timeline shows. */
  fill() {
    const { corrections, rows } = this.app;
    const classes = new Set(rows);
    const segments = corrections.items.filter((segment) => classes.has(segment.classId));
    const pages = Math.ceil(segments.length / LIST_ROWS);
    this.first = clamp(this.first, 0, Math.max(0, pages - 1) * LIST_ROWS);
    const visible = segments.slice(this.first, this.first + LIST_ROWS);
    this.segments = segments;
    this.lines = new Map(visible.map((segment) => [segment, this.line(segment)]));
    this.body.replaceChildren(...this.lines.values());
    byId("pages").hidden = pages < 2;
    byId("earlier").disabled = this.first === 0;
    byId("later").disabled = this.first + LIST_ROWS >= segments.length;
    const range = [this.first + 1, this.first + visible.length, segments.length];
    const [from, to, all] = range.map((number) => number.toLocaleString("en"));
    byId("page-range").textContent = `${from} to ${to} of ${all}`;
    byId("none").hidden = segments.length > 0;
    byId("none").textContent = corrections.items.length
      ? "No segment of these classes."
      : corrections.locked
        ? "No segments yet: press N to add one at the playhead."
        : "No segments at this threshold: lower it to see some.";
    this.markSelected();
    this.markTime(this.app.player.time);
  }

  line(segment) {
    const name = shown(this.app.corrections.classes[segment.classId]);
    const button = element("button", { type: "button", textContent: name, dir: "auto" });
    const score = segment.score === null || segment.corrected ? "corrected" : segment.score.toFixed(2);
    const line = element(
      "tr", {},
      element("th", { scope: "row" }, button),
      element("td", { textContent: clock(segment.start, 2) }),
      element("td", { textContent: clock(segment.end, 2) }),
      element("td", { textContent: segment.labelled && !segment.corrected ? "label" : score }),
    );
    line.addEventListener("click", () => this.app.goTo(segment));
    return line;
  }

  markSelected() {
    for (const [segment, line] of this.lines) {
      const selected = segment === this.app.selected;
      line.classList.toggle("selected", selected);
      if (selected) line.setAttribute("aria-current", "true"); else line.removeAttribute("aria-current");
    }
  }

  reveal(segment) {
    const at = this.segments.indexOf(segment);
    if (at >= 0 && !this.lines.has(segment)) {
      this.first = at - (at % LIST_ROWS);
      this.fill();
    }
    this.lines.get(segment)?.scrollIntoView({ block: "nearest" });
  }

  /** Mark the segments that last at this time. */
  markTime(time) {
    for (const [segment, line] of this.lines) {
      // A video that was sent to the start of a segment stands a millisecond before it, or after.
      line.classList.toggle("now", segment.start <= time + 0.002 && time + 0.002 < segment.end);
    }
  }
}

/** The form with the selected segment's class and times, for exact numbers. */
class Editor {
  constructor(app) {
    this.app = app;
    this.classes = byId("edit-class");
    this.classes.addEventListener("change", () => this.relabel());
    byId("edit-new-class").addEventListener("change", () => this.nameClass());
    for (const edge of ["start", "end"]) {
      byId(`edit-${edge}`).addEventListener("change", () => this.retime(edge));
    }
    byId("edit-delete").addEventListener("click", () => app.remove());
    byId("editor").addEventListener("submit", (event) => event.preventDefault());
  }

  show() {
    const { selected, corrections } = this.app;
    byId("editor-fields").disabled = !selected;
    byId("editor-legend").textContent = selected ? "Selected segment, in seconds" : "No segment selected";
    byId("editor-problem").textContent = "";
    byId("new-class-label").hidden = true;
    byId("edit-new-class").value = "";
    this.listClasses();
    this.classes.value = selected ? String(selected.classId) : "";
    for (const edge of ["start", "end"]) {
      byId(`edit-${edge}`).value = selected ? Number(selected[edge].toFixed(3)) : "";
    }
  }

  listClasses() {
    const { classes } = this.app.corrections;
    const listed = JSON.stringify(classes);
    if (listed === this.listed) return;
    this.listed = listed;
    const options = classes.map((name, id) =>
      element("option", { value: String(id), textContent: shown(name), dir: "auto" }));
    this.classes.replaceChildren(...options, element("option", { value: "new", textContent: "a new class …" }));
  }

  relabel() {
    const isNew = this.classes.value === "new";
    byId("new-class-label").hidden = !isNew;
    if (isNew) byId("edit-new-class").focus();
    else this.app.change(this.app.selected, { classId: Number(this.classes.value) });
  }

  nameClass() {
    const name = byId("edit-new-class").value.trim();
    if (!name) {
      byId("editor-problem").textContent = "Give the new class a name.";
      return;
    }
    this.app.change(this.app.selected, { classId: this.app.corrections.classId(name) });
  }

  /** Take the number typed for one edge; the other one stays exactly what it was. */
  retime(edge) {
    const { selected, facts } = this.app;
    const times = { start: selected.start, end: selected.end };
    times[edge] = byId(`edit-${edge}`).valueAsNumber;
    const problem = whyNot(times.start, times.end, facts.duration);
    byId("editor-problem").textContent = problem;
    if (!problem) this.app.change(selected, times);
  }
}
