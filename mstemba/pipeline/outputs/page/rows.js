// Selection and order of the classes in the timeline.

const ACTIVE_LEVEL = 50; // a class that stays below is shown only if it has segments

function groupByClass(segments) {
  const found = new Map();
  for (const segment of segments) {
    if (!found.has(segment.classId)) found.set(segment.classId, []);
    found.get(segment.classId).push(segment);
  }
  return found;
}

function normaliseText(text) {
  return text.normalize("NFKC").toLocaleLowerCase();
}

/**
 * Return the ids of the classes to show: those that are active, detected or labelled, or, in a
 * search, those whose name contains the text, and that of the selected segment.
 */
function selectClasses({ corrections, scores, itemsByClass, truthByClass, query, selected }) {
  const ids = [...corrections.classes.keys()];
  const wanted = normaliseText(query.trim());
  return ids.filter((id) =>
    wanted
      ? normaliseText(corrections.classes[id]).includes(wanted) || id === selected?.classId
      : itemsByClass.has(id) || truthByClass.has(id) || scores.peaks.get(id) >= ACTIVE_LEVEL);
}

/** Sort ids by "class", "name", "first" appearance or total "time", longest first. */
function sortClasses(ids, order, { corrections, itemsByClass, truthByClass }) {
  const segments = (id) => itemsByClass.get(id) || truthByClass.get(id) || [];
  const keys = {
    class: (id) => id,
    name: (id) => normaliseText(corrections.classes[id]),
    first: (id) => segments(id).reduce((first, s) => Math.min(first, s.start), Infinity),
    time: (id) => -segments(id).reduce((sum, s) => sum + s.end - s.start, 0),
  };
  const key = new Map(ids.map((id) => [id, keys[order](id)]));
  const compare = order === "name"
    ? (a, b) => key.get(a).localeCompare(key.get(b))
    : (a, b) => (key.get(a) === key.get(b) ? 0 : key.get(a) < key.get(b) ? -1 : 1);
  return [...ids].sort((a, b) => compare(a, b) || a - b);
}
