// The state of the page, and the actions that change it.

class App {
  constructor(facts, scores, segments) {
    this.facts = facts;
    this.scores = scores;
    this.truth = readLabels(facts);
    this.truthByClass = groupByClass(this.truth || []);
    this.thresholds = new Thresholds(facts, scores, segments);
    this.corrections = new Corrections(
      { detections: () => this.thresholds.getSegments(), labels: () => this.truth || [], empty: () => [] },
      facts.classes,
    );
    this.query = "";
    this.order = "class";
    this.rows = []; // ids of the classes shown
    this.selected = null;
    this.markedClass = null;
    this.draft = null; // a segment while it is dragged
    this.seen = 0; // the time that was shown last
    this.view = new View(facts.duration, () => this.timeline?.draw());
    this.player = new Player(byId("video"), facts.duration, {
      onTime: (time) => this.updateTime(time),
      onLength: () => this.useLength(),
      onFailure: (otherLength) => this.bar.showNoVideo(otherLength),
    });
    this.timeline = new Timeline(this);
    this.list = new SegmentList(this);
    this.editor = new Editor(this);
    this.bar = new Bar(this);
    this.pointer = new Pointer(this, this.timeline);
  }

  /** Seconds that can be labelled: to the end that was found, or that of the player if it is later. */
  get length() {
    return this.player.duration;
  }

  useLength() {
    this.view.setDuration(this.length);
    this.bar.showTime(this.player.time);
  }

  /** Show the current segments. */
  refresh() {
    this.itemsByClass = groupByClass(this.corrections.items);
    if (this.selected && !this.corrections.items.includes(this.selected)) this.selected = null;
    this.rows = sortClasses(selectClasses(this), this.order, this);
    if (!this.rows.includes(this.markedClass)) this.markedClass = this.rows[0] ?? null;
    this.timeline.setRows(this.rows);
    this.list.fill();
    this.editor.show();
    this.bar.show();
  }

  setThreshold(value) {
    this.thresholds.set(value);
    this.corrections.resetToBase();
    this.refresh();
  }

  search(query) {
    this.query = query;
    this.refresh();
  }

  sort(order) {
    this.order = order;
    this.refresh();
  }

  begin(base) {
    this.corrections.begin(base);
    this.refresh();
  }

  // Time

  updateTime(time) {
    // Not if the user has moved the view away from the playhead to look at something else.
    if (this.player.playing && this.view.contains(this.seen)) this.view.follow(time);
    this.seen = time;
    this.timeline.movePlayhead(time);
    this.list.markTime(time);
    this.bar.showTime(time);
  }

  seek(time) {
    this.player.seek(time);
  }

  /** Move the playhead by rows of scores. */
  seekRows(count) {
    const { times } = this.scores;
    const row = countUpTo(times, this.player.time + 1e-6) - 1 + count;
    this.seekShown(times[clamp(row, 0, times.length - 1)]);
  }

  seekShown(time) {
    this.seek(time);
    this.view.follow(this.player.time);
  }

  /** Select a segment, go to its start and show it everywhere. */
  goTo(segment) {
    this.select(segment);
    this.seek(segment.start);
    this.view.reveal(segment);
    this.timeline.revealRow(segment.classId);
    this.list.reveal(segment);
  }

  /** Go to the next (1) or previous (-1) segment of the classes shown. */
  goToNext(direction) {
    const shownItems = this.corrections.items.filter((item) => this.rows.includes(item.classId));
    const time = this.player.time;
    let at = shownItems.indexOf(this.selected) + direction;
    if (!shownItems.includes(this.selected)) {
      const next = shownItems.findIndex((item) => item.start > time);
      at = direction > 0 ? next : (next < 0 ? shownItems.length : next) - 1;
    }
    if (shownItems[at]) this.goTo(shownItems[at]);
  }

  select(segment) {
    this.selected = segment;
    if (segment) this.markedClass = segment.classId;
    this.timeline.markRow();
    this.timeline.draw();
    this.list.markSelected();
    this.editor.show();
  }

  markClass(id) {
    this.markedClass = id;
    this.timeline.markRow();
    this.timeline.revealRow(id);
    this.timeline.draw();
  }

  markNext(direction) {
    if (!this.rows.length) return;
    const at = clamp(this.rows.indexOf(this.markedClass) + direction, 0, this.rows.length - 1);
    this.markClass(this.rows[at]);
    if (this.timeline.labelFocused) this.timeline.focusMarked();
  }

  /** Move up or down: in the table if one of its rows has the focus, otherwise by class. */
  stepBy(direction) {
    if (!this.list.stepBy(direction)) this.markNext(direction);
  }

  /** Cancel a drag, or clear the selection. */
  escape() {
    if (this.pointer.drag) this.pointer.cancel();
    else this.select(null);
  }

  // Corrections

  change(segment, changes) {
    this.show(this.corrections.change(segment, changes));
  }

  relabel(segment, classId) {
    this.show(this.corrections.relabel(segment, classId));
  }

  rename(segment, name) {
    this.show(this.corrections.rename(segment, name));
  }

  /** Set the selected segment's "start" or "end" to the playhead. */
  setEdge(edge) {
    if (this.selected) this.editor.setTime(edge, this.player.time);
  }

  add(segment) {
    this.show(this.corrections.add(segment));
  }

  /** Add a segment at the playhead, a twentieth of the view long, but at least one row. */
  addHere() {
    const { facts, scores, player } = this;
    if (!this.corrections.classes.length) return;
    if (this.query.trim() && !this.rows.length) {
      this.editor.showProblem("No class matches the search.");
      return;
    }
    const length = clamp(this.view.span / 20, facts.step, 2);
    let start = scores.snap(player.time), end = scores.snap(Math.min(start + length, this.length));
    if (!(start < end)) [start, end] = [Math.max(0, this.length - length), this.length];
    this.add({ classId: this.markedClass ?? 0, start, end });
  }

  remove() {
    if (!this.selected) return;
    this.pointer.cancel();
    this.corrections.remove(this.selected);
    this.select(null);
    this.refresh();
  }

  undo() {
    this.restore(() => this.corrections.undo());
  }

  redo() {
    this.restore(() => this.corrections.redo());
  }

  /** Change to another state, and show the segment that it restores. */
  restore(go) {
    this.pointer.cancel();
    const facts = ({ classId, start, end }) => `${classId} ${start} ${end}`;
    const before = new Set(this.corrections.items.map(facts));
    go();
    const back = this.corrections.items.filter((item) => !before.has(facts(item)));
    if (back.length !== 1) {
      this.refresh();
      return;
    }
    this.show(back[0]);
    this.view.reveal(back[0]);
  }

  show(segment) {
    this.selected = segment;
    this.markedClass = segment.classId;
    this.refresh();
    this.timeline.revealRow(segment.classId);
    this.list.reveal(segment);
  }

  download() {
    const text = formatAnnotations(this, byId("subset").value);
    saveFile(text, formatFileName(this.facts.id));
    this.corrections.saved = this.corrections.items;
    this.bar.show();
  }
}
