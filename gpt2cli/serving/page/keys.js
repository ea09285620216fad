/** Keys that work everywhere; each room adds its own. */

/** @param {import("./state.js").Store} store */
export function bindKeys(store) {
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    if (event.shiftKey) store.redo();
    else store.undo();
  });
}
