// Scores to segments: the same rule as pipeline/detect/segments.py, on levels.

function compareSegments(a, b) {
  return a.start - b.start || a.end - b.end || a.classId - b.classId;
}

/**
 * Return the segments of every class, by start, then end, then class.
 *
 * A segment is a longest sequence of rows at `low` or above that contains a row at `threshold` or
 * above; both are levels. Shorter ones than `minLength` seconds are dropped. The score is the mean.
 */
function findSegments(scores, threshold, low, minLength) {
  const found = [];
  for (const [classId, column] of scores.levels) {
    let first = -1, peak = 0, sum = 0;
    for (let row = 0; row <= column.length; row++) {
      if (row < column.length && column[row] >= low) {
        if (first < 0) { first = row; peak = 0; sum = 0; }
        if (column[row] > peak) peak = column[row];
        sum += column[row];
      } else if (first >= 0) {
        const start = scores.starts[first], end = scores.ends[row - 1];
        if (peak >= threshold && end > start && end - start >= minLength) {
          // A level covers the probabilities up to the next: half a level more on average.
          const score = Math.min(1, (sum / (row - first) + 0.5) / LEVELS);
          found.push({ start, end, classId, score });
        }
        first = -1;
      }
    }
  }
  return found.sort(compareSegments);
}

/** The threshold of the page, and the segments at it. */
class Thresholds {
  constructor(facts, scores, own) {
    this.facts = facts;
    this.scores = scores;
    this.own = own;
    this.value = facts.threshold;
  }

  /** Set the threshold: that of the detection exactly, others in whole levels. */
  set(value) {
    const own = Math.abs(value - this.facts.threshold) < 0.5 / LEVELS;
    this.value = own ? this.facts.threshold : Math.round(value * LEVELS) / LEVELS;
  }

  /** The threshold at which a segment continues, in the proportion of the detection's two. */
  get low() {
    if (this.value === this.facts.threshold) return this.facts.low;
    return Math.round((this.facts.low / this.facts.threshold) * this.value * LEVELS) / LEVELS;
  }

  /** Return the segments; at the threshold of the detection exactly those of the detection. */
  getSegments() {
    return this.value === this.facts.threshold ? this.own : this.recompute();
  }

  recompute() {
    const level = (probability) => Math.round(probability * LEVELS);
    return findSegments(this.scores, level(this.value), level(this.low), this.facts.min_length);
  }
}
