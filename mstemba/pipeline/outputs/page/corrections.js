// Segments as the user corrects them, and the annotation file that comes of it.

/**
 * The segments on show, and every former state of them.
 *
 * Until the first correction they are those of `base`: the detections (whatever the threshold gives),
 * the labels, or none. A state is never changed in place, so that a step back is the former one.
 */
class Corrections {
  constructor(bases, classes) {
    this.bases = bases; // functions that give segments, by name
    this.known = classes;
    this.past = [];
    this.start("detections");
    this.saved = this.items;
  }

  /** Take the base's segments, as there are no corrections to keep. */
  follow() {
    this.items = this.bases[this.base]();
    this.future = [];
  }

  get locked() {
    return this.count > 0 || this.base !== "detections";
  }

  get unsaved() {
    return this.items !== this.saved && this.count > 0;
  }

  start(base) {
    this.base = base;
    this.classes = [...this.known];
    this.count = 0; // of corrections to the base
    this.relabelled = null; // what the last step relabelled, if that is all it did
    this.follow();
  }

  /** Leave the corrections for a base; a step like any other. */
  begin(base) {
    this.past.push(this.state);
    this.start(base);
  }

  /** All that a step changes: what undo and redo bring back. */
  get state() {
    const { items, classes, base, count } = this;
    return { items, classes, base, count };
  }

  set state(state) {
    Object.assign(this, state);
    this.relabelled = null;
    // The threshold may be another one than it was.
    if (!this.locked) this.items = this.bases[this.base]();
  }

  step(items, classes = this.classes) {
    this.past.push(this.state);
    this.future = [];
    this.state = { items, classes, base: this.base, count: this.count + 1 };
  }

  add(segment) {
    const made = { ...segment, score: null, corrected: true };
    this.step([...this.items, made].sort(inOrder));
    return made;
  }

  change(segment, changes, classes = this.classes) {
    if (Object.entries(changes).every(([name, value]) => segment[name] === value)) return segment;
    const made = { ...segment, ...changes, corrected: true };
    this.step(this.items.map((item) => (item === segment ? made : item)).sort(inOrder), classes);
    return made;
  }

  /**
   * Another class for a segment. Arrow keys pass through many: all of them are one step, which takes
   * the place of the one before; none if they come back to where they began.
   */
  relabel(segment, classId, classes) {
    if (classId === segment.classId && !classes) return segment;
    const again = segment === this.relabelled?.made;
    const former = again ? this.relabelled.former : segment;
    if (again) this.state = this.past.pop();
    const made = this.change(former, { classId }, classes);
    if (made !== former) this.relabelled = { made, former };
    return made;
  }

  /** The class of this name for a segment; a new one if there is none yet. */
  rename(segment, name) {
    if (name === this.classes[segment.classId]) return segment;
    // A new class that the step before has made goes with that step.
    const { classes } = segment === this.relabelled?.made ? this.past.at(-1) : this;
    const known = classes.indexOf(name);
    if (known >= 0) return this.relabel(segment, known);
    return this.relabel(segment, classes.length, [...classes, name]);
  }

  remove(segment) {
    this.step(this.items.filter((item) => item !== segment));
  }

  undo() {
    if (!this.past.length) return;
    this.future.push(this.state);
    this.state = this.past.pop();
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.state);
    this.state = this.future.pop();
  }
}

/** Why a segment cannot be from `start` to `end`; empty when it can. */
function whyNot(start, end, duration) {
  if (!Number.isFinite(start) || !Number.isFinite(end)) return "Start and end must be numbers of seconds.";
  if (start < 0 || end > duration) return `The video lasts from 0 to ${Number(duration.toFixed(3))} s.`;
  if (!(start < end)) return `The start (${start} s) must be before the end (${end} s).`;
  return "";
}

/** The text of an annotation file as `mstemba init --annotations` reads it, in the manifest's unit. */
function annotationText(facts, scores, corrections, subset) {
  const perRow = facts.frames_per_row;
  const time = perRow === null ? (seconds) => seconds : (seconds) => scores.frameAt(seconds, perRow);
  const actions = corrections.items.map(({ classId, start, end }) => [classId, time(start), time(end)]);
  const entry = { subset: subset || null, duration: time(facts.duration), actions };
  // Computed, so that a video called __proto__ is an entry like any other.
  const content = {
    classes: corrections.classes,
    time_unit: perRow === null ? "seconds" : "frames",
    videos: { [facts.id]: entry },
  };
  return JSON.stringify(content, null, 1) + "\n";
}

function download(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = element("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A file name that every system takes. */
function fileName(id) {
  const name = id.replace(/[\ud800-\udfff]/gu, "_").replace(/[\x00-\x1f\\/:*?"<>|]/g, "_");
  return `${[...name].slice(0, 60).join("") || "video"}.annotations.json`;
}
