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
    this.replace(visible);
    byId("pages").hidden = pages < 2;
    byId("earlier").disabled = this.first === 0;
    byId("later").disabled = this.first + LIST_ROWS >= segments.length;
    const range = [this.first + 1, this.first + visible.length, segments.length];
    const [from, to, all] = range.map((number) => number.toLocaleString("en"));
    byId("page-range").textContent = `${from} to ${to} of ${all}`;
    byId("none").hidden = segments.length > 0;
    byId("none").textContent = this.whyNone();
    this.markSelected();
    this.markTime(this.app.player.time);
  }

  whyNone() {
    const { corrections, scores } = this.app;
    if (corrections.items.length) return "No segment of these classes.";
    if (!corrections.classes.length) return "There are no classes.";
    if (corrections.locked) return "No segments yet: press N to add one at the playhead.";
    if (!scores.levels.size) return "No class reaches a probability of 0.01 anywhere.";
    return "No segments at this threshold: lower it to see some.";
  }

  /** Show these segments. Rows that stay are left alone: one may be being pressed just now. */
  replace(segments) {
    const focused = [...this.lines.values()].findIndex((line) => line.contains(document.activeElement));
    const lines = new Map(segments.map((segment) => [segment, this.lines.get(segment) || this.line(segment)]));
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

  /** From the focused row to the one above (-1) or below (1); false if no row has the focus. */
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

  line(segment) {
    const name = shown(this.app.corrections.classes[segment.classId]);
    const button = element("button", { type: "button", textContent: name, dir: "auto", title: name });
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

  /** Mark the selected segment; one row alone is reached by Tab: its row, or the first. */
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
      line.classList.toggle("now", segment.start <= time && time < segment.end);
    }
  }
}

/** The form with the selected segment's class and times, for exact numbers. */
class Editor {
  constructor(app) {
    this.app = app;
    this.segment = null; // the one in the form
    this.classes = byId("edit-class");
    this.classes.addEventListener("change", () => this.relabel());
    byId("edit-new-class").addEventListener("change", () => this.nameClass());
    for (const edge of ["start", "end"]) {
      byId(`edit-${edge}`).addEventListener("change", (event) => this.retime(edge, event.target.valueAsNumber));
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
    byId("editor-legend").textContent = selected ? "Selected segment, in seconds" : "No segment selected";
    this.tell("");
    byId("new-class-label").hidden = true;
    byId("edit-new-class").value = "";
    this.listClasses();
    this.classes.value = selected ? String(selected.classId) : "";
    for (const edge of ["start", "end"]) {
      byId(`edit-${edge}`).value = selected ? rounded(selected[edge]) : "";
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
    else this.app.relabel(this.segment, Number(this.classes.value));
  }

  nameClass() {
    const name = byId("edit-new-class").value.trim();
    if (!name) {
      this.tell("Give the new class a name.");
      return;
    }
    const focused = document.activeElement === byId("edit-new-class");
    this.app.rename(this.segment, name);
    if (focused) this.classes.focus(); // the field is hidden now
  }

  /** Move one edge to a time; the other one is what its field says, which may have been refused before. */
  retime(edge, time) {
    const other = edge === "start" ? "end" : "start", own = this.segment[other];
    const typed = byId(`edit-${other}`).valueAsNumber;
    // A field is rounded: what was not typed stays exactly what it was.
    const { start, end } = { [edge]: time, [other]: typed === rounded(own) ? own : typed };
    const problem = whyNot(start, end, this.app.facts.duration);
    this.tell(problem);
    if (!problem) this.app.change(this.segment, { start, end });
  }

  /** Say what cannot be done. */
  tell(problem) {
    byId("editor-problem").textContent = problem;
  }
}

/** Seconds as the form shows them. */
function rounded(seconds) {
  return Number(seconds.toFixed(3));
}
