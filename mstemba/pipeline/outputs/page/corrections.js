// Segments as the user corrects them, and the annotation file with the result.

/**
 * The segments shown, with their former states.
 *
 * Until the first correction they are those of `base`: the detections at the current threshold, the
 * labels, or none. A state is never changed in place, so undo can return to it.
 */
class Corrections {
  constructor(bases, classes) {
    this.bases = bases; // functions that return segments, by name
    this.known = classes;
    this.past = [];
    this.start("detections");
    this.saved = this.items;
  }

  /** Show the segments of the base; there must be no corrections. */
  resetToBase() {
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
    this.count = 0; // number of corrections to the base
    this.relabelled = null; // the segment that the last step relabelled, if it did nothing else
    this.resetToBase();
  }

  /** Replace the corrections by a base, as a step that can be undone. */
  begin(base) {
    this.past.push(this.state);
    this.start(base);
  }

  /** Everything that a step changes and undo restores. */
  get state() {
    const { items, classes, base, count } = this;
    return { items, classes, base, count };
  }

  set state(state) {
    Object.assign(this, state);
    this.relabelled = null;
    // The threshold may have changed since.
    if (!this.locked) this.items = this.bases[this.base]();
  }

  step(items, classes = this.classes) {
    this.past.push(this.state);
    this.future = [];
    this.state = { items, classes, base: this.base, count: this.count + 1 };
  }

  add(segment) {
    const made = { ...segment, score: null, corrected: true };
    this.step([...this.items, made].sort(compareSegments));
    return made;
  }

  change(segment, changes, classes = this.classes) {
    if (Object.entries(changes).every(([name, value]) => segment[name] === value)) return segment;
    const made = { ...segment, ...changes, corrected: true };
    this.step(this.items.map((item) => (item === segment ? made : item)).sort(compareSegments), classes);
    return made;
  }

  /**
   * Set the class of a segment. Arrow keys pass through several classes: together they are one step,
   * or none if they return to the first class.
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

  /** Set the class of a segment by name; create the class if it is new. */
  rename(segment, name) {
    if (name === this.classes[segment.classId]) return segment;
    // A new class of the previous step disappears with that step.
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

/** Return whether a segment has no length: a point event. */
function isPoint({ start, end }) {
  return start === end;
}

/**
 * Return why a segment cannot last from `start` to `end`, or an empty text. An edge that stays may be
 * outside the video.
 */
function findProblem(segment, start, end, length) {
  if (!Number.isFinite(start) || !Number.isFinite(end)) return "Start and end must be numbers of seconds.";
  const moved = [start, end].filter((time, i) => time !== [segment.start, segment.end][i]);
  if (moved.some((time) => time < 0 || time > length)) return `The video lasts from 0 to ${Number(length.toFixed(3))} s.`;
  if (!(start < end || (start === end && isPoint(segment)))) {
    return `The start (${start} s) must be before the end (${end} s).`;
  }
  return "";
}

/**
 * Return the manifest's labels as segments, sorted by time; null if it has none.
 *
 * `label` has the times before any correction, and those of the manifest in its own unit, which are
 * not always within the video, or in order.
 */
function readLabels({ listed }) {
  if (!listed?.actions.length) return null;
  const labels = listed.actions.map(([classId, start, end, givenStart, givenEnd], index) => {
    const label = { start, end, given: { start: givenStart, end: givenEnd }, index };
    return { start, end, classId, score: 1, labelled: true, label };
  });
  return labels.sort(compareSegments);
}

/** Return the ids of the classes to write: those of the manifest, in its order, then others in use. */
function listClasses({ listed }, { classes, items }) {
  const known = listed?.classes ?? [], used = new Set(items.map(({ classId }) => classId));
  const others = [...classes.keys()].filter((id) => !known.includes(id));
  return [...known, ...(known.length ? others.filter((id) => used.has(id)) : others)];
}

/**
 * Return the text of an annotation file for `mstemba init`, in the time unit of the manifest.
 *
 * What the manifest says of the video is written again as it was, except for what was corrected.
 */
function formatAnnotations({ facts, scores, corrections, length }, subset) {
  const perRow = facts.frames_per_row;
  const time = perRow === null ? (seconds) => seconds : (seconds) => scores.frameAt(seconds, perRow);
  const edge = (item, name) =>
    (item.label && item[name] === item.label[name] ? item.label.given[name] : time(item[name]));
  const ids = listClasses(facts, corrections), numbers = new Map(ids.map((id, number) => [id, number]));
  const labels = corrections.items.filter((item) => item.label).sort((a, b) => a.label.index - b.label.index);
  const actions = [...labels, ...corrections.items.filter((item) => !item.label)]
    .map((item) => [numbers.get(item.classId), edge(item, "start"), edge(item, "end")]);
  const times = facts.listed ? facts.listed.times : { duration: time(length) };
  const entry = { subset: subset || null, ...times, actions };
  // A computed key, so that a video called __proto__ is an entry like any other.
  const content = {
    classes: ids.map((id) => corrections.classes[id]),
    time_unit: perRow === null ? "seconds" : "frames",
    videos: { [facts.id]: entry },
  };
  return JSON.stringify(content, null, 1) + "\n";
}

function saveFile(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = createElement("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Return a file name that is valid on every system. */
function formatFileName(id) {
  const name = id.replace(/[\ud800-\udfff]/gu, "_").replace(/[\x00-\x1f\\/:*?"<>|]/g, "_");
  return `${[...name].slice(0, 60).join("") || "video"}.annotations.json`;
}
