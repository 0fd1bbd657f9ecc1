// The data that html_page.py writes into the page, and formatting of names and times.

const LEVELS = 1000; // probabilities are whole numbers from 0 to this

function byId(id) {
  return document.getElementById(id);
}

function decodeBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/**
 * Inflate the scores and the detected segments, stored column after column:
 * T starts of rows; N starts and N ends of segments, their class ids, their scores in
 * ten-thousandths; then the levels of T rows class by class, first the low bytes of all of them,
 * then the high bytes, which deflate packs better than pairs.
 */
async function unpack(text, facts) {
  const stream = new Blob([decodeBase64(text)]).stream();
  const inflated = stream.pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(inflated).arrayBuffer();
  let at = 0;
  const column = (Kind, count) => {
    const values = new Kind(buffer, at, count);
    at += values.byteLength;
    return values;
  };
  const rows = column(Float64Array, facts.rows);
  const starts = column(Float64Array, facts.found), ends = column(Float64Array, facts.found);
  const ids = column(Uint32Array, facts.found), means = column(Uint16Array, facts.found);
  const segments = Array.from(starts, (start, i) =>
    ({ start, end: ends[i], classId: ids[i], score: means[i] / 10_000 }));
  return [new Scores(facts, rows, new Uint8Array(buffer, at)), segments];
}

/**
 * Dense scores: `levels` has a Uint16Array of T levels for each class id that has scores. Of the T
 * rows, `starts` has the seconds at which they start, `times` those at which their scores hold, and
 * `bounds` (T + 1) those between which they are shown; `times` and `bounds` lie within the video.
 */
class Scores {
  constructor({ scored, step, duration, anchor }, starts, bytes) {
    const rows = starts.length;
    this.step = step;
    this.duration = duration;
    this.starts = starts;
    const inside = (time) => clamp(time, 0, duration);
    const ends = starts.map((start, i) => starts[i + 1] ?? start + step);
    const times = starts.map((start, i) => start + anchor * (ends[i] - start));
    this.times = times.map(inside);
    this.bounds = Float64Array.from(
      [starts[0], ...times.subarray(1).map((time, i) => (times[i] + time) / 2), ends[rows - 1]], inside);
    this.levels = new Map();
    const count = rows * scored.length;
    scored.forEach((classId, index) => {
      const column = new Uint16Array(rows);
      for (let row = 0, at = index * rows; row < rows; row++, at++) {
        column[row] = bytes[at] | (bytes[count + at] << 8);
      }
      this.levels.set(classId, column);
    });
    this.peaks = new Map([...this.levels].map(([id, column]) => [id, findPeak(column)]));
  }

  /** Return the row that is shown at a time; -1 before the first, the last one after all of them. */
  rowAt(seconds) {
    return Math.min(countUpTo(this.bounds, seconds), this.starts.length) - 1;
  }

  /** Convert seconds to a frame number, from 0, by the real times of the rows. */
  frameAt(seconds, framesPerRow) {
    const row = Math.max(0, countUpTo(this.starts, seconds) - 1), start = this.starts[row];
    const next = this.starts[row + 1] ?? start + this.step;
    const frame = framesPerRow * (row + (seconds - start) / (next - start));
    return Math.max(0, Math.round(frame * 1e6) / 1e6);
  }

  /** Return the nearest edge of a row as it is shown, or the time itself if there is none near it. */
  snap(seconds) {
    const at = countUpTo(this.bounds, seconds), distance = (time) => Math.abs(time - seconds);
    const near = [this.bounds[at - 1], this.bounds[at]]
      .filter((time) => distance(time) <= this.step); // undefined is not
    return near.length ? near.reduce((best, time) => (distance(time) < distance(best) ? time : best)) : seconds;
  }
}

/** Return how many of these ascending numbers are at most `value`. */
function countUpTo(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1; else high = middle;
  }
  return low;
}

function findPeak(column) {
  let peak = 0;
  for (const level of column) if (level > peak) peak = level;
  return peak;
}

function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

/** Return a name as one line, with visible symbols for control characters. */
function formatName(name) {
  if (name.trim() === "") return `“${name}”`;
  return name
    .replace(/\r\n|[\n\r\u2028\u2029]/g, "⏎")
    .replace(/\t/g, "⇥")
    .replace(/[\x00-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    // Python represents undecodable bytes of a file name as lone surrogates.
    .replace(/[\ud800-\udfff]/gu, (c) => `\\x${(c.charCodeAt(0) & 0xff).toString(16)}`);
}

/** Format seconds as 1:02:03.4; labels may have negative ones. */
function formatTime(seconds, decimals = 1) {
  const whole = Number(Math.abs(seconds).toFixed(decimals)), sign = seconds < 0 && whole ? "-" : "";
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const rest = (whole % 60).toFixed(decimals).padStart(decimals ? 3 + decimals : 2, "0");
  return sign + (hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`);
}

/** Format a threshold with four digits. */
function formatThreshold(value) {
  return String(Number(value.toPrecision(4)));
}

function createElement(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function formatCount(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
