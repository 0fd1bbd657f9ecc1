// The part of the video that the timeline shows, in seconds.

const SHORTEST_VIEW = 1;

class View {
  constructor(duration, onChange) {
    this.duration = Math.max(duration, 1e-3);
    this.onChange = onChange;
    this.from = 0;
    this.to = this.duration;
  }

  /** Set the length of the video; a view of all of it stays one. */
  setDuration(duration) {
    const all = this.from === 0 && this.to === this.duration;
    this.duration = duration;
    if (all) this.showAll(); else this.onChange();
  }

  /** Return from where to where a segment is drawn: outside the video as a mark at its start or end. */
  place({ start, end }) {
    const from = clamp(start, 0, this.duration);
    return [from, clamp(end, from, this.duration)];
  }

  get span() {
    return this.to - this.from;
  }

  show(from, span) {
    span = clamp(span, Math.min(SHORTEST_VIEW, this.duration), this.duration);
    this.from = clamp(from, 0, this.duration - span);
    this.to = this.from + span;
    this.onChange();
  }

  showAll() {
    this.show(0, this.duration);
  }

  /** Zoom in by a factor; the time `at` stays in its place. */
  zoom(factor, at) {
    const share = clamp((at - this.from) / this.span, 0, 1);
    const span = clamp(this.span / factor, Math.min(SHORTEST_VIEW, this.duration), this.duration);
    this.show(clamp(at, this.from, this.to) - share * span, span);
  }

  pan(seconds) {
    this.show(this.from + seconds, this.span);
  }

  contains(time) {
    return this.from <= time && time <= this.to;
  }

  /** Move on if a time is not shown. */
  follow(time) {
    if (!this.contains(time)) this.show(time - 0.1 * this.span, this.span);
  }

  /** Show a segment with its surroundings. */
  reveal(segment) {
    const [start, end] = this.place(segment);
    if (start >= this.from && end <= this.to) return;
    const span = Math.max(this.span, 1.5 * (end - start));
    this.show((start + end - span) / 2, span);
  }
}
