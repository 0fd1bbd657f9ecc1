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
    this.future = [];
    this.follow();
  }

  step(items) {
    this.past.push(this.items);
    this.future = [];
    this.items = items;
  }

  add(segment) {
    const made = { ...segment, score: null, corrected: true };
    this.step([...this.items, made].sort(inOrder));
    return made;
  }

  change(segment, changes) {
    const made = { ...segment, ...changes, corrected: true };
    this.step(this.items.map((item) => (item === segment ? made : item)).sort(inOrder));
    return made;
  }

  remove(segment) {
    this.step(this.items.filter((item) => item !== segment));
  }

  undo() {
    if (!this.past.length) return;
    this.future.push(this.items);
    this.items = this.past.pop();
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.items);
    this.items = this.future.pop();
  }

  /** The id of a class of this name; a new one if there is none yet. */
  classId(name) {
    const known = this.classes.indexOf(name);
    return known >= 0 ? known : this.classes.push(name) - 1;
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
