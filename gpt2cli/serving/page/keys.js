/** Keys that work everywhere, and the list of all; each room adds its own. */

import { find, h } from "./dom.js";
import { openDialog } from "./dialog.js";

const KEYS = [
  ["Ctrl+Z", "undo: text, branches, settings"],
  ["Ctrl+Shift+Z, Ctrl+Y", "redo"],
  ["?", "this list, outside of a text"],
  ["Ctrl+Enter", "continue the text"],
  ["Escape", "stop writing"],
  ["Alt+1 … Alt+9", "in the text: take an alternative of the token at the caret"],
  ["Alt+C", "colour by surprisal, by rank, not at all"],
  ["Alt+B", "token boundaries"],
  ["1 … 9, ↑ ↓, Enter", "among the alternatives: take one"],
  ["↑ ↓ ← →, Enter", "among the branches: go, and show that text"],
  ["Space", "among the branches: choose one to compare"],
  ["F2, Delete", "among the branches: rename, prune"],
];

/** @param {import("./state.js").Store} store */
export function bindKeys(store) {
  document.addEventListener("keydown", (event) => {
    const isOwn = isField(event.target);
    if (event.ctrlKey || event.metaKey) {
      const step = travel(event);
      if (!step || isOwn) return;
      event.preventDefault();
      store[step]();
    } else if (event.key === "?" && !isOwn && !isText(event.target)) {
      event.preventDefault();
      help();
    }
  });
  const undo = /** @type {HTMLButtonElement} */ (find("#undo"));
  const redo = /** @type {HTMLButtonElement} */ (find("#redo"));
  undo.addEventListener("click", () => store.undo());
  redo.addEventListener("click", () => store.redo());
  find("#help").addEventListener("click", help);
  store.subscribe(
    (state) => state,
    () => {
      undo.disabled = !store.canUndo;
      redo.disabled = !store.canRedo;
    },
  );
}

function help() {
  const rows = KEYS.map(([keys, what]) =>
    h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, keys)), h("td", {}, what)),
  );
  openDialog("Keys", [h("table", { class: "keys" }, h("tbody", {}, ...rows))]);
}

/** @param {KeyboardEvent} event @returns {"undo" | "redo" | null} */
function travel({ key, shiftKey }) {
  if (key.toLowerCase() === "y") return "redo";
  if (key.toLowerCase() !== "z") return null;
  return shiftKey ? "redo" : "undo";
}

/** The text of the page, whose steps are the page's. @param {EventTarget | null} target */
function isText(target) {
  return target instanceof HTMLTextAreaElement && target.id === "text";
}

/** A field with steps of its own. @param {EventTarget | null} target */
function isField(target) {
  if (!(target instanceof HTMLInputElement)) {
    return target instanceof HTMLTextAreaElement && !isText(target);
  }
  return !["range", "checkbox", "radio", "button", "file"].includes(target.type);
}
