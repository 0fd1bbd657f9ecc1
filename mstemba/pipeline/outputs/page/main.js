// Entry point: read the data, show it, and listen to the keyboard.

function showNotice(text) {
  byId("notices").append(createElement("p", { className: "notice", textContent: text }));
}

const TYPED_IN = "input:is([type=text], [type=number], [type=search])";

/** Return the actions of keys outside text fields. */
function keyActions(app) {
  const { player } = app;
  return {
    " ": () => player.toggle(),
    ArrowLeft: (event) => app.seekShown(player.time - (event.shiftKey ? 10 : 1)),
    ArrowRight: (event) => app.seekShown(player.time + (event.shiftKey ? 10 : 1)),
    ArrowUp: () => app.stepBy(-1),
    ArrowDown: () => app.stepBy(1),
    Home: () => app.seekShown(0),
    End: () => app.seekShown(app.length),
    ",": () => app.seekRows(-1),
    ".": () => app.seekRows(1),
    "[": () => app.goToNext(-1),
    "]": () => app.goToNext(1),
    "+": () => app.bar.zoom(2),
    "=": () => app.bar.zoom(2), // + without Shift
    "-": () => app.bar.zoom(0.5),
    0: () => app.view.showAll(),
    "/": () => byId("search").focus(),
    n: () => app.addHere(),
    i: () => app.setEdge("start"),
    o: () => app.setEdge("end"),
    Delete: () => app.remove(),
    Backspace: () => app.remove(),
    "?": () => app.bar.showHelp(),
    Escape: () => app.escape(),
  };
}

/** Return whether a control other than a text field handles a key itself. */
function usesKey(target, key) {
  const moves = /^(Arrow|Page|Home$|End$)/.test(key);
  if (target.matches("select")) return moves || key.length === 1; // a letter chooses by name
  if (target.matches("input[type=range]")) return moves;
  return target.matches("input[type=file]") && key === " ";
}

function listenToKeys(app) {
  const act = keyActions(app);
  // The button that the pointer pressed keeps the focus, but Space then belongs to the video.
  let pointed = null;
  addEventListener("click", (event) => { pointed = event.detail ? event.target.closest("button") : null; }, true);
  addEventListener("focusout", () => { pointed = null; }, true);
  const letter = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);
  // Captured, because a focused video would handle space and arrows itself.
  addEventListener("keydown", (event) => {
    const { target } = event;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && target.matches("input, select")) {
      // Discard what was typed first: leaving the field would apply it.
      if (target.id === "search") {
        target.value = "";
        app.search("");
        event.preventDefault(); // some browsers do the same without an event
      }
      app.editor.show();
      app.bar.show();
      target.blur();
      return;
    }
    const control = event.ctrlKey || event.metaKey;
    if (target.matches(TYPED_IN) || (!control && usesKey(target, event.key))) return;
    if (control && letter(event) === "z") {
      if (event.shiftKey) app.redo(); else app.undo();
    } else if (control && letter(event) === "y") {
      app.redo();
    } else if (!control && !event.altKey && act[letter(event)]) {
      if (event.key === " " && target.matches("button") && target !== pointed) return; // presses it
      act[letter(event)](event);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }, true);
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    showNotice("This browser is too old: it cannot unpack the scores (it has no DecompressionStream).");
    return;
  }
  const facts = JSON.parse(byId("facts").textContent);
  const app = new App(facts, ...(await unpack(byId("packed").textContent, facts)));
  byId("packed").remove(); // free the memory
  app.refresh();
  listenToKeys(app);
  app.player.load(openEmbeddedVideo() || (facts.video.found ? facts.video.source : null));
  app.updateTime(0);
  window.mstemba = app; // for tests and the console
}

await start();
