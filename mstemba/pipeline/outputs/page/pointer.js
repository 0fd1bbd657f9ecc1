// Mouse and touch on the timeline: seek, select, drag an edge, move, add, zoom, pan.

const DRAG_FROM = 4; // pixels before a press becomes a drag

class Pointer {
  constructor(app, timeline) {
    this.app = app;
    this.timeline = timeline;
    this.drag = null;
    const canvas = timeline.canvas;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => { byId("corner").textContent = ""; });
    byId("scroller").addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.scrub(byId("ruler-lane"), (x) => app.seek(timeline.timeAt(x)));
    this.scrub(byId("overview"), (x, width) => {
      const { view } = app;
      view.show((x / width) * view.duration - view.span / 2, view.span);
    });
  }

  /** Call `go` with the position of a press and of every move after it. */
  scrub(target, go) {
    const at = (event) => {
      const box = target.getBoundingClientRect();
      go(clamp(event.clientX - box.left, 0, box.width), box.width);
    };
    target.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      target.setPointerCapture(event.pointerId);
      at(event);
    });
    target.addEventListener("pointermove", (event) => {
      if (target.hasPointerCapture(event.pointerId)) at(event);
    });
  }

  locate(event) {
    const box = this.timeline.canvas.getBoundingClientRect();
    return this.timeline.locate(event.clientX - box.left, event.clientY - box.top);
  }

  /** Show the probability under the pointer. */
  showProbability(event) {
    const { time, classId } = this.locate(event), { scores } = this.app;
    const levels = scores.levels.get(classId), row = scores.rowAt(time);
    const known = levels && row >= 0 && time < scores.bounds[row + 1];
    byId("corner").textContent = known
      ? `${formatTime(time, 2)}: probability ${(levels[row] / LEVELS).toFixed(2)}`
      : "";
  }

  press(event) {
    if (event.button !== 0) return;
    // Apply what is being typed to the segment that is selected now.
    if (byId("editor").contains(document.activeElement)) document.activeElement.blur();
    const place = this.locate(event), { app } = this;
    if (place.classId === undefined) return;
    this.timeline.canvas.setPointerCapture(event.pointerId);
    let kind = "seek";
    if (place.edge) kind = place.edge;
    else if (place.item && place.item === app.selected && place.inBand) kind = "move";
    else if (event.shiftKey && !place.item) kind = "add";
    this.drag = { kind, item: place.item, classId: place.classId, from: place.time, x: event.clientX, moved: false };
    // A finger may be about to scroll: then the browser cancels the drag before it begins.
    if (event.pointerType !== "touch") this.begin();
  }

  /** Act on a press before it is known whether it becomes a drag. */
  begin() {
    const { drag, app } = this;
    if (drag.begun) return;
    drag.begun = true;
    app.markClass(drag.classId);
    if (drag.kind !== "add") app.select(drag.item);
    if (drag.kind === "seek") app.seek(drag.from);
  }

  move(event) {
    if (!this.drag) {
      const { edge, item, inBand } = this.locate(event);
      const grab = item && item === this.app.selected && inBand ? "grab" : "pointer";
      this.timeline.canvas.style.cursor = edge ? "ew-resize" : grab;
      this.showProbability(event);
      return;
    }
    const { drag, app } = this;
    drag.moved ||= Math.abs(event.clientX - drag.x) >= DRAG_FROM;
    if (!drag.moved) return;
    this.begin();
    const { time } = this.locate(event);
    if (drag.kind === "seek") {
      app.seek(time);
      return;
    }
    const segment = this.dragSegment(time, event.altKey);
    app.draft = { item: drag.item, segment };
    this.timeline.draw();
  }

  /** Return the segment after a drag to this time, snapped to the rows unless `free`. */
  dragSegment(time, free) {
    const { drag, app } = this;
    const end = app.length;
    const snap = (t) => (free ? t : app.scores.snap(t));
    const shortest = free ? 0.001 : app.facts.step;
    const to = clamp(snap(clamp(time, 0, end)), 0, end);
    if (drag.kind === "add") {
      const from = clamp(snap(clamp(drag.from, 0, end)), 0, end);
      return { classId: drag.classId, start: Math.min(from, to), end: Math.max(from, to), corrected: true };
    }
    const item = { ...drag.item, corrected: true };
    // Keep one row between the edges, or the present length if it is shorter.
    if (drag.kind === "start") {
      const last = snap(item.end - shortest);
      return { ...item, start: Math.min(to, last < item.end ? Math.max(item.start, last) : item.start) };
    }
    if (drag.kind === "end") {
      const first = snap(item.start + shortest);
      return { ...item, end: Math.max(to, first > item.start ? Math.min(item.end, first) : item.end) };
    }
    const [from, until] = app.view.place(item); // all of it, if nothing of it is within the video
    const length = until > from ? until - from : clamp(item.end - item.start, 0, end);
    const start = clamp(snap(from + time - drag.from), 0, end - length);
    return { ...item, start, end: start === end - length ? end : start + length };
  }

  release(event) {
    const { drag, app } = this;
    if (!drag) return;
    this.move(event); // a busy browser skips moves: the position of the release counts
    this.begin();
    this.drag = null;
    const draft = app.draft;
    app.draft = null;
    if (draft && (draft.segment.start < draft.segment.end || draft.item)) {
      if (draft.item) app.change(draft.item, { start: draft.segment.start, end: draft.segment.end });
      else app.add(draft.segment);
    } else if (!drag.moved && drag.kind !== "seek") {
      app.seek(this.locate(event).time);
    }
    this.timeline.draw();
  }

  cancel() {
    this.drag = null;
    this.app.draft = null;
    this.timeline.draw();
  }

  wheel(event) {
    const { view } = this.app;
    const sideways = event.shiftKey ? event.deltaX || event.deltaY : event.deltaX;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const x = event.clientX - this.timeline.canvas.getBoundingClientRect().left;
      view.zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 250), this.timeline.timeAt(x));
    } else if (Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY)) {
      event.preventDefault();
      view.pan((sideways / this.timeline.width) * view.span);
    }
  }
}
