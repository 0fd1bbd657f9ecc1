// The table of segments, and the form that changes the selected one.

const LIST_ROWS = 100; // rows of the table at a time, to keep the slider fast

class SegmentList {
  constructor(app) {
    this.app = app;
    this.first = 0; // index of the segment in the first row
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
    this.replace(visible);
    byId("pages").hidden = pages < 2;
    byId("earlier").disabled = this.first === 0;
    byId("later").disabled = this.first + LIST_ROWS >= segments.length;
    const range = [this.first + 1, this.first + visible.length, segments.length];
    const [from, to, all] = range.map((number) => number.toLocaleString("en"));
    byId("page-range").textContent = `${from} to ${to} of ${all}`;
    byId("none").hidden = segments.length > 0;
    byId("none").textContent = this.explainEmpty();
    this.markSelected();
    this.markTime(this.app.player.time);
  }

  explainEmpty() {
    const { corrections, scores } = this.app;
    if (corrections.items.length) return "No segment of these classes.";
    if (!corrections.classes.length) return "There are no classes.";
    if (corrections.locked) return "No segments yet: press N to add one at the playhead.";
    if (!scores.levels.size) return "No class reaches a probability of 0.01 anywhere.";
    return "No segments at this threshold: lower it to see some.";
  }

  /** Show these segments. Existing rows are kept: one may be pressed at this moment. */
  replace(segments) {
    const focused = [...this.lines.values()].findIndex((line) => line.contains(document.activeElement));
    const lines = new Map(segments.map((segment) => [segment, this.lines.get(segment) || this.createRow(segment)]));
    for (const [segment, line] of this.lines) if (!lines.has(segment)) line.remove();
    let next = this.body.firstChild;
    for (const line of lines.values()) {
      if (line === next) next = next.nextSibling;
      else this.body.insertBefore(line, next);
    }
    this.lines = lines;
    if (focused < 0 || this.body.contains(document.activeElement)) return;
    const near = lines.get(this.app.selected) || [...lines.values()][Math.min(focused, lines.size - 1)];
    (near?.querySelector("button") || byId("list")).focus({ preventScroll: true });
  }

  /** Move from the focused row up (-1) or down (1); return false if no row has the focus. */
  stepBy(direction) {
    const [segment] = [...this.lines].find(([, line]) => line.contains(document.activeElement)) || [];
    if (!segment) return false;
    const next = this.segments[this.segments.indexOf(segment) + direction];
    if (next) {
      this.app.goTo(next);
      this.lines.get(next).querySelector("button").focus({ preventScroll: true });
    }
    return true;
  }

  createRow(segment) {
    const name = formatName(this.app.corrections.classes[segment.classId]);
    const button = createElement("button", { type: "button", textContent: name, dir: "auto", title: name });
    const score = segment.score === null || segment.corrected ? "corrected" : segment.score.toFixed(2);
    const line = createElement(
      "tr", {},
      createElement("th", { scope: "row" }, button),
      createElement("td", { textContent: formatTime(segment.start, 2) }),
      createElement("td", { textContent: formatTime(segment.end, 2) }),
      createElement("td", { textContent: segment.labelled && !segment.corrected ? "label" : score }),
    );
    line.addEventListener("click", () => this.app.goTo(segment));
    return line;
  }

  /** Mark the selected segment; Tab reaches only its row, or the first. */
  markSelected() {
    const reached = this.lines.has(this.app.selected) ? this.app.selected : this.lines.keys().next().value;
    for (const [segment, line] of this.lines) {
      const selected = segment === this.app.selected;
      line.classList.toggle("selected", selected);
      line.querySelector("button").tabIndex = segment === reached ? 0 : -1;
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
      line.classList.toggle("now", segment.start <= time && (time < segment.end || time === segment.start));
    }
  }
}

/** The form for the class and the exact times of the selected segment. */
class Editor {
  constructor(app) {
    this.app = app;
    this.segment = null; // the one in the form
    this.classes = byId("edit-class");
    this.classes.addEventListener("change", () => this.relabel());
    byId("edit-new-class").addEventListener("change", () => this.nameClass());
    for (const edge of ["start", "end"]) {
      byId(`edit-${edge}`).addEventListener("change", (event) => this.setTime(edge, event.target.valueAsNumber));
    }
    byId("edit-delete").addEventListener("click", () => {
      app.remove();
      byId("list").focus(); // the button is disabled now
    });
    byId("editor").addEventListener("submit", (event) => event.preventDefault());
  }

  show() {
    const { selected } = this.app;
    this.segment = selected;
    byId("editor-fields").disabled = !selected;
    byId("editor-legend").textContent = selected ? this.describe(selected) : "No segment selected";
    this.showProblem("");
    byId("new-class-label").hidden = true;
    byId("edit-new-class").value = "";
    this.listClasses();
    this.classes.value = selected ? String(selected.classId) : "";
    for (const edge of ["start", "end"]) {
      byId(`edit-${edge}`).value = selected ? roundSeconds(selected[edge]) : "";
    }
  }

  describe({ start, end }) {
    const kind = start === end ? "point event" : "segment";
    if (end < start) return "Selected label, which ends before it starts, in seconds";
    const outside = start < 0 || end > this.app.length ? ", not all within the video" : "";
    return `Selected ${kind}${outside}, in seconds`;
  }

  listClasses() {
    const { classes } = this.app.corrections;
    const listed = JSON.stringify(classes);
    if (listed === this.listed) return;
    this.listed = listed;
    const options = classes.map((name, id) =>
      createElement("option", { value: String(id), textContent: formatName(name), dir: "auto" }));
    this.classes.replaceChildren(...options, createElement("option", { value: "new", textContent: "a new class …" }));
  }

  relabel() {
    const isNew = this.classes.value === "new";
    byId("new-class-label").hidden = !isNew;
    if (isNew) byId("edit-new-class").focus();
    else this.app.relabel(this.segment, Number(this.classes.value));
  }

  nameClass() {
    const name = byId("edit-new-class").value.trim();
    if (!name) {
      this.showProblem("Give the new class a name.");
      return;
    }
    const focused = document.activeElement === byId("edit-new-class");
    this.app.rename(this.segment, name);
    if (focused) this.classes.focus(); // the field is hidden now
  }

  /** Move one edge to a time; the other one is set from its field, which may have been refused before. */
  setTime(edge, time) {
    const other = edge === "start" ? "end" : "start", own = this.segment[other];
    const typed = byId(`edit-${other}`).valueAsNumber;
    // Fields are rounded: a value that was not typed stays exact.
    const { start, end } = { [edge]: time, [other]: typed === roundSeconds(own) ? own : typed };
    const problem = findProblem(this.segment, start, end, this.app.length);
    this.showProblem(problem);
    if (!problem) this.app.change(this.segment, { start, end });
  }

  /** Show a problem below the form. */
  showProblem(problem) {
    byId("editor-problem").textContent = problem;
  }
}

/** Round seconds as the form shows them. */
function roundSeconds(seconds) {
  return Number(seconds.toFixed(3));
}
