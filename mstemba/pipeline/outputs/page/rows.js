// Which classes the timeline shows, and in which order.

const ACTIVE_LEVEL = 50; // a class that never gets so likely is shown for its segments only

function bySegments(segments) {
  const found = new Map();
  for (const segment of segments) {
    if (!found.has(segment.classId)) found.set(segment.classId, []);
    found.get(segment.classId).push(segment);
  }
  return found;
}

function folded(text) {
  return text.normalize("NFKC").toLocaleLowerCase();
}

/**
 * The ids of the classes to show: those that are active, detected or labelled; where something is
 * searched for, all classes whose name holds it, and the selected segment's.
 */
function classesToShow({ corrections, scores, itemsByClass, truthByClass, query, selected }) {
  const ids = [...corrections.classes.keys()];
  const wanted = folded(query.trim());
  return ids.filter((id) =>
    wanted
      ? folded(corrections.classes[id]).includes(wanted) || id === selected?.classId
      : itemsByClass.has(id) || truthByClass.has(id) || scores.peaks.get(id) >= ACTIVE_LEVEL);
}

/** The same ids by "class", "name", "first" appearance or total "time", longest first. */
function ordered(ids, order, { corrections, itemsByClass, truthByClass }) {
  const segments = (id) => itemsByClass.get(id) || truthByClass.get(id) || [];
  const keys = {
    class: (id) => id,
    name: (id) => folded(corrections.classes[id]),
    first: (id) => segments(id).reduce((first, s) => Math.min(first, s.start), Infinity),
    time: (id) => -segments(id).reduce((sum, s) => sum + s.end - s.start, 0),
  };
  const key = new Map(ids.map((id) => [id, keys[order](id)]));
  const compare = order === "name"
    ? (a, b) => key.get(a).localeCompare(key.get(b))
    : (a, b) => (key.get(a) === key.get(b) ? 0 : key.get(a) < key.get(b) ? -1 : 1);
  return [...ids].sort((a, b) => compare(a, b) || a - b);
}
