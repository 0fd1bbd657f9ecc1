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
    this.begin("detections");
    this.saved = this.items;
  }

  /** Take the base's segments, as there are no corrections to keep. */
  follow() {
    this.items = this.bases[this.base]();
    this.future = [];
  }

  get count() {
    return this.past.length;
  }

  get locked() {
    return this.count > 0 || this.base !== "detections";
  }

  get unsaved() {
    return this.items !== this.saved && this.count > 0;
  }

  begin(base) {
    this.base = base;
    this.classes = [...this.known];
    this.past = [];
    this.relabelled = null; // the segment of the last step, if all that did was to relabel it
    this.follow();
  }

  /** All that a step changes: what undo and redo bring back. */
  get state() {
    return { items: this.items, classes: this.classes };
  }

  set state({ items, classes }) {
    this.items = items;
    this.classes = classes;
    this.relabelled = null;
  }

  step(items, classes = this.classes) {
    this.past.push(this.state);
    this.future = [];
    this.state = { items, classes };
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

  /** Another class for a segment. Arrow keys pass through many: all of them are one step. */
  relabel(segment, classId, classes = this.classes) {
    const again = segment === this.relabelled;
    const made = this.change(segment, { classId }, classes);
    if (made === segment) return made;
    if (again) this.past.pop();
    this.relabelled = made;
    return made;
  }

  /** The class of this name for a segment; a new one if there is none yet. */
  rename(segment, name) {
    const known = this.classes.indexOf(name);
    if (known >= 0) return this.relabel(segment, known);
    return this.relabel(segment, this.classes.length, [...this.classes, name]);
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
  if (start < 0 || end > duration) return `The video lasts from 0 to ${duration} s.`;
  if (!(start < end)) return `The start (${start} s) must be before the end (${end} s).`;
  return "";
}

/** The text of an annotation file as `mstemba init --annotations` reads it. */
function annotationText(facts, corrections, subset) {
  const actions = corrections.items.map(({ classId, start, end }) => [classId, start, end]);
  const entry = { subset: subset || null, duration: facts.duration, actions };
  // Computed, so that a video called __proto__ is an entry like any other.
  const content = {
    classes: corrections.classes,
    time_unit: "seconds",
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
