/** The page's one dialog. */

import { find, h } from "./dom.js";

/**
 * Show some content until it is closed; the focus then goes back to where it was.
 *
 * @param {string} title
 * @param {import("./dom.js").Child[]} content
 * @param {string} [name] A class of its style.
 * @returns {() => void} what closes it
 */
export function openDialog(title, content, name = "") {
  const dialog = /** @type {HTMLDialogElement} */ (find("#dialog"));
  const close = () => dialog.close();
  dialog.className = name;
  dialog.onclose = null;
  dialog.replaceChildren(
    h(
      "header",
      {},
      h("h2", { id: "dialog-title" }, title),
      h("button", { onclick: close, "aria-label": "Close" }, "Close"),
    ),
    ...content.filter((child) => child instanceof Node),
  );
  if (!dialog.open) dialog.showModal();
  return close;
}
