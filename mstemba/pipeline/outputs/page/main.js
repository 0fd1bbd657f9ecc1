// The page's main path: read what it was given, show it, listen to the keyboard.

function notice(text) {
  byId("notices").append(element("p", { className: "notice", textContent: text }));
}

const TYPED_IN = "input:is([type=text], [type=number], [type=search])";

/** What keys do where nothing is being typed. */
function keys(app) {
  const { player } = app;
  return {
    " ": () => player.toggle(),
    ArrowLeft: (event) => app.seekShown(player.time - (event.shiftKey ? 10 : 1)),
    ArrowRight: (event) => app.seekShown(player.time + (event.shiftKey ? 10 : 1)),
    ArrowUp: () => app.stepBy(-1),
    ArrowDown: () => app.stepBy(1),
    Home: () => app.seekShown(0),
    End: () => app.seekShown(app.facts.duration),
    ",": () => app.seekRows(-1),
    ".": () => app.seekRows(1),
    "[": () => app.goBy(-1),
    "]": () => app.goBy(1),
    "+": () => app.bar.zoom(2),
    "=": () => app.bar.zoom(2), // + without Shift
    "-": () => app.bar.zoom(0.5),
    0: () => app.view.all(),
    "/": () => byId("search").focus(),
    n: () => app.addHere(),
    i: () => app.setEdge("start"),
    o: () => app.setEdge("end"),
    Delete: () => app.remove(),
    Backspace: () => app.remove(),
    "?": () => app.bar.help(),
    Escape: () => app.escape(),
  };
}

/** Whether a field in which nothing is typed does something of its own with a key. */
function takes(target, key) {
  const moves = /^(Arrow|Page|Home$|End$)/.test(key);
  if (target.matches("select")) return moves || key.length === 1; // a letter chooses by name
  if (target.matches("input[type=range]")) return moves;
  return target.matches("input[type=file]") && key === " ";
}

function listenToKeys(app) {
  const act = keys(app);
  // The button that the pointer pressed: it keeps the focus, but Space is for the video then.
  let pointed = null;
  addEventListener("click", (event) => { pointed = event.detail ? event.target.closest("button") : null; }, true);
  addEventListener("focusout", () => { pointed = null; }, true);
  const letter = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);
  // Captured: a focused video would take space and arrows for itself.
  addEventListener("keydown", (event) => {
    const { target } = event;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && target.matches("input, select")) {
      // What was typed goes first: leaving the field would take it.
      if (target.id === "search") {
        target.value = "";
        app.search("");
        event.preventDefault(); // some browsers do the same, and tell nobody
      }
      app.editor.show();
      app.bar.show();
      target.blur();
      return;
    }
    const control = event.ctrlKey || event.metaKey;
    if (target.matches(TYPED_IN) || (!control && takes(target, event.key))) return;
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
    notice("This browser is too old: it cannot unpack the scores (it has no DecompressionStream).");
    return;
  }
  const facts = JSON.parse(byId("facts").textContent);
  const app = new App(facts, ...(await unpack(byId("packed").textContent, facts)));
  byId("packed").remove(); // the text is of no use any more
  app.refresh();
  listenToKeys(app);
  app.player.load(embeddedVideo() || (facts.video.found ? facts.video.source : null));
  app.moved(0);
  window.mstemba = app; // for the tests, and for the curious
}

await start();
