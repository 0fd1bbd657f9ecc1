// Scores to segments: the same rule as pipeline/detect/segments.py, on levels.

function compareSegments(a, b) {
  return a.start - b.start || a.end - b.end || a.classId - b.classId;
}

const CLOSEST = 0.05; // share of the distance between two rows that an edge keeps from both
const DECIMALS = 1e9; // an edge is rounded to nanoseconds

/**
 * Return the segments of every class, by start, then end, then class.
 *
 * A segment reaches from the first to the last row at `threshold` or above of a longest sequence of
 * rows at `low` or above; both are levels. It begins and ends between two rows, where the score
 * crosses the threshold. Shorter ones than `minLength` seconds are dropped. The score is the mean.
 */
function findSegments(scores, threshold, low, minLength) {
  const found = [];
  for (const [classId, column] of scores.levels) {
    let first = -1, last = -1, sum = 0, rest = 0; // `rest`: of the rows after `last`
    for (let row = 0; row <= column.length; row++) {
      if (row < column.length && column[row] >= low) {
        if (column[row] >= threshold) {
          if (first < 0) first = row;
          sum += rest + column[row];
          rest = 0;
          last = row;
        } else if (first >= 0) {
          rest += column[row];
        }
      } else if (first >= 0) {
        const start = findEdge(scores, column, first, -1, threshold);
        const end = findEdge(scores, column, last, 1, threshold);
        if (end > start && end - start >= minLength) {
          // A level covers the probabilities up to the next: half a level more on average.
          const score = Math.min(1, (sum / (last + 1 - first) + 0.5) / LEVELS);
          found.push({ start, end, classId, score });
        }
        first = -1;
        sum = rest = 0;
      }
    }
  }
  return found.sort(compareSegments);
}

/** Return the seconds at which a segment begins before (-1) or ends after (1) its row `inner`. */
function findEdge({ times, bounds, duration }, column, inner, direction, threshold) {
  const outer = inner + direction;
  if (outer < 0) return bounds[0];
  if (outer === column.length) return bounds[outer];
  const below = logOdds(column[outer] + 0.5), above = logOdds(column[inner] + 0.5);
  const share = above > below ? clamp((logOdds(threshold) - below) / (above - below), CLOSEST, 1 - CLOSEST) : 0.5;
  const edge = Math.round((times[outer] + share * (times[inner] - times[outer])) * DECIMALS) / DECIMALS;
  return clamp(edge, 0, duration);
}

function logOdds(level) {
  const inside = Math.min(level, LEVELS - 0.5);
  return Math.log(inside / (LEVELS - inside));
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

  /** The threshold down to which a dip does not split a segment, in the proportion of the detection's two. */
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
