// Buttons, fields and messages around the timeline.

const SUBSETS = ["training", "validation", "testing"];

class Bar {
  constructor(app) {
    this.app = app;
    const { facts } = app;
    document.title = `${formatName(facts.video.name)} · mstemba`;
    byId("title").textContent = formatName(facts.video.name);
    this.setUpThreshold();
    this.setUpCorrections();
    this.setUpVideo();
    this.setUpDialogs();
    this.setUpTheme();
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    on("play", "click", () => app.player.toggle());
    on("search", "input", () => app.search(byId("search").value));
    on("order", "change", () => app.sort(byId("order").value));
    on("zoom-in", "click", () => this.zoom(2));
    on("zoom-out", "click", () => this.zoom(0.5));
    on("zoom-all", "click", () => app.view.showAll());
    this.showLegend();
  }

  /** Zoom around the playhead if it is in view, otherwise around the middle. */
  zoom(factor) {
    const { view, player } = this.app;
    const seen = view.from <= player.time && player.time <= view.to;
    view.zoom(factor, seen ? player.time : (view.from + view.to) / 2);
  }

  setUpThreshold() {
    const { app } = this, { facts } = app;
    for (const id of ["threshold", "threshold-number"]) {
      byId(id).min = id === "threshold" ? Math.floor(100 * facts.floor) / 100 : facts.floor; // on its grid
      byId(id).max = id === "threshold" ? 0.99 : 1;
      byId(id).value = facts.threshold;
    }
    // Compute once per frame, however many events the slider sends.
    let waiting = false;
    byId("threshold").addEventListener("input", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        const value = byId("threshold").valueAsNumber;
        const own = Math.abs(value - facts.threshold) <= 0.005; // half of its step
        app.setThreshold(own ? facts.threshold : Math.max(value, facts.floor));
        app.timeline.paint();
      });
    });
    byId("threshold-number").addEventListener("change", () => {
      const typed = byId("threshold-number").valueAsNumber;
      if (Number.isFinite(typed)) app.setThreshold(clamp(typed, facts.floor, 1));
      else this.show();
    });
  }

  setUpCorrections() {
    const { app } = this, { facts } = app;
    const known = facts.subset && !SUBSETS.includes(facts.subset) ? [facts.subset] : [];
    byId("subset").replaceChildren(
      ...[...SUBSETS, ...known].map((name) => createElement("option", { value: name, textContent: formatName(name) })),
      createElement("option", { value: "", textContent: "none" }),
    );
    // A video that was not labelled before is for training.
    byId("subset").value = facts.subset ?? (app.truth ? "" : "training");
    for (const option of byId("base").options) {
      if (option.value === "labels") option.disabled = !app.truth;
    }
    byId("base").addEventListener("change", () => app.begin(byId("base").value));
    byId("add").addEventListener("click", () => app.addHere());
    byId("undo").addEventListener("click", () => app.undo());
    byId("redo").addEventListener("click", () => app.redo());
    byId("discard").addEventListener("click", () => app.begin("detections"));
    byId("download").addEventListener("click", () => app.download());
    addEventListener("beforeunload", (event) => {
      if (app.corrections.unsaved) event.preventDefault();
    });
  }

  setUpVideo() {
    byId("file").addEventListener("change", () => {
      const [file] = byId("file").files;
      if (!file) return;
      byId("video").hidden = byId("choose-again").hidden = false;
      byId("no-video").hidden = true;
      this.chosen = file.name;
      this.app.player.load(URL.createObjectURL(file), true);
    });
    // The right length does not make it the right video.
    byId("choose-again").addEventListener("click", () => byId("file").click());
  }

  /** Explain that the video is missing, cannot be decoded by this browser, or is another one. */
  showNoVideo(otherLength) {
    const { video, duration } = this.app.facts;
    byId("video").hidden = byId("choose-again").hidden = true;
    byId("no-video").hidden = false;
    const name = this.chosen ?? video.name;
    // A name may contain characters that change the direction of the text after them.
    const isolated = (text) => createElement("bdi", { textContent: formatName(text) });
    const moved = this.chosen === undefined ? "no longer where it was when this page was made, or " : "";
    const other = otherLength !== undefined;
    const there = (video.found || this.chosen !== undefined) && !other;
    byId("no-video-reason").replaceChildren(...(other
      ? ["“", isolated(name), `” lasts ${formatTime(otherLength)}, and this page is of a video of ${formatTime(duration)}. ` +
        "Choose that one:"]
      : there
      ? ["“", isolated(name), `” cannot be played here: it is ${moved}in a format that browsers ` +
        "do not know. This makes a copy that every browser plays:"]
      : ["“", isolated(name), "” was not found when this page was made (", isolated(video.path), "). Put it " +
        "there and make the page again with “mstemba export --format html”, or choose the file:"]));
    byId("no-video-command").hidden = !there;
    byId("no-video-command").textContent = formatName(formatCopyCommand(name, video.playable));
  }

  setUpDialogs() {
    byId("help-button").addEventListener("click", () => this.showHelp());
    byId("about-button").addEventListener("click", () => {
      this.fillAbout();
      byId("about").showModal();
    });
  }

  showHelp() {
    byId("help").showModal();
  }

  fillAbout() {
    const { facts, thresholds, corrections } = this.app;
    // Scores are float32: nine digits are exact.
    const digits = (value) => Number(value.toPrecision(9));
    const line = `mstemba export --threshold ${digits(thresholds.value)} --low ${digits(thresholds.low)}` +
      (facts.min_length ? ` --min-length ${facts.min_length}` : "");
    const rows = Object.entries({
      video: facts.video.path,
      ...(corrections.locked ? {} : { "segments as shown": line }), // no line makes corrections
      ...facts.provenance,
    });
    byId("provenance").replaceChildren(...rows.flatMap(([name, value]) => [
      createElement("dt", { textContent: formatName(name), dir: "auto" }),
      createElement("dd", { textContent: formatName(typeof value === "string" ? value : JSON.stringify(value)), dir: "auto" }),
    ]));
  }

  setUpTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.app.timeline.useTheme());
    byId("theme").addEventListener("click", () => {
      const { dataset } = document.documentElement;
      const isDark = dataset.theme ? dataset.theme === "dark" : dark.matches;
      dataset.theme = isDark ? "light" : "dark";
      this.app.timeline.useTheme();
    });
  }

  showLegend() {
    const names = { detected: "detected", shade: "probability" };
    if (this.app.truth) names.labelled = "labelled";
    names.corrected = "corrected";
    byId("legend").replaceChildren(...Object.entries(names).map(([kind, text]) =>
      createElement("li", { className: kind, textContent: text })));
  }

  showTime(time) {
    const { player, length } = this.app;
    time = Math.min(time, length); // a video may last a little longer
    byId("time").textContent = `${formatTime(time)} / ${formatTime(length)}`;
    byId("play").textContent = player.playing ? "Pause" : "Play";
    const ruler = byId("ruler-lane");
    ruler.setAttribute("aria-valuemax", length.toFixed(1));
    ruler.setAttribute("aria-valuenow", time.toFixed(1));
    ruler.setAttribute("aria-valuetext", formatTime(time));
  }

  /** Say how many labels of the manifest the download changes or does not have. */
  explainLost() {
    const { truth, corrections } = this.app;
    const kept = corrections.items.filter((item) => item.label && !item.corrected).length;
    const lost = (truth?.length ?? 0) - kept;
    const labels = formatCount(truth?.length ?? 0, "label");
    return lost ? `replaces ${lost.toLocaleString("en")} of ${labels}` : "";
  }

  /** Show counts, and enable the actions that are possible now. */
  show() {
    const { corrections, thresholds, rows, scores, list } = this.app;
    const hidden = corrections.classes.length - rows.length;
    const why = this.app.query.trim() ? "do not match the search" : "stay below 0.05 and have no segment";
    const all = corrections.items.length, listed = list.segments.length;
    byId("summary").textContent =
      (listed < all ? `${listed.toLocaleString("en")} of ` : "") +
      `${formatCount(all, "segment")} · ${formatCount(rows.length, "class", "classes")}` +
      (hidden ? ` (${hidden.toLocaleString("en")} more ${why})` : "");
    byId("threshold").value = thresholds.value;
    byId("threshold-number").value = formatThreshold(thresholds.value);
    const disabled = corrections.locked || !scores.levels.size;
    byId("threshold").disabled = byId("threshold-number").disabled = disabled;
    byId("threshold-note").textContent = `dips to ${Number(thresholds.low.toFixed(3))} allowed`;
    byId("base").value = corrections.base;
    byId("add").disabled = !corrections.classes.length;
    byId("undo").disabled = !corrections.past.length;
    byId("redo").disabled = !corrections.future.length;
    byId("locked").hidden = !corrections.locked;
    const reason = corrections.count
      ? `The threshold is locked, to keep ${formatCount(corrections.count, "correction")}.`
      : "The threshold is locked: these segments do not come from the scores.";
    byId("locked-reason").textContent = reason + (corrections.unsaved ? " Not downloaded yet." : "");
    byId("discard").textContent = corrections.count ? "Discard corrections" : "Back to the detections";
    byId("lost").textContent = this.explainLost();
    byId("canvas").setAttribute("aria-label",
      `Timeline of ${formatCount(rows.length, "class", "classes")}; the table lists the segments`);
    this.showTime(this.app.player.time);
  }
}

/** Return the shell command for a copy of the video that every browser plays. */
function formatCopyCommand(name, encoding) {
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
  // Without `file:`, ffmpeg would read the part of a name before a colon as a protocol.
  const copy = `file:${name.replace(/(?<=.)\.[^.]*$/, "")}.playable.mp4`;
  return `ffmpeg -i ${quoted(`file:${name}`)} ${encoding} ${quoted(copy)}`;
}
