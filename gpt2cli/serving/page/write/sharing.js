/** Taking a text along: as text, as JSON, as a link; and bringing one back. */

import { Refusal } from "../api.js";
import { h, say } from "../dom.js";
import { blank, brought } from "../keeping.js";
import { fragmentOf, fromRecord, parsed, recordOf } from "../record.js";
import { textOf } from "../tokens.js";
import { tokensOf } from "../tree.js";
import { openDialog } from "../dialog.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").State} State
 */

const LARGEST = 64e6; // bytes of a file
const LONG = 8000; // characters of a link from which on some programs cut it off

/**
 * The dialog with all ways out and in.
 *
 * @param {Page} page
 * @param {import("./judging.js").Judge} judge
 */
export function share(page, judge) {
  const { store, model } = page;
  const link = h("input", { readonly: true, "aria-label": "Link", class: "link" });
  const length = h("p", { class: "soft", role: "status" });
  const file = h("input", { type: "file", accept: ".json,application/json", id: "import-file" });
  const problem = h("p", { class: "bad", role: "alert" });
  const whole = async () => {
    await judge.settled({ everywhere: true }).catch(forgiven);
    return recordOf(store.state, model);
  };
  const makeLink = async () => {
    const { origin, pathname } = window.location;
    link.value = origin + pathname + (await fragmentOf(await whole()));
    const count = link.value.length;
    const long = count > LONG ? "; some programs cut off such a long one, a file is safer" : "";
    length.textContent = `${count.toLocaleString("en")} characters${long}.`;
    link.select();
    const isCopied = await copy(link.value);
    if (isCopied) length.textContent = `Copied: ${length.textContent}`;
  };
  const bring = async () => {
    try {
      const [given] = file.files ?? [];
      if (!given) return;
      if (given.size > LARGEST) throw new Error("the file is too large to be a text of this page");
      adopt(page, fromRecord(parsed(await given.text()), model));
      close();
      say("The file is opened; undo brings back what was here.");
    } catch (error) {
      problem.textContent = `Not opened: ${error instanceof Error ? error.message : error}.`;
    }
    file.value = "";
  };
  const fresh = () => {
    adopt(page, { ...store.state, tree: blank(model).tree });
    close();
    say("A new text; undo brings back the old one.");
  };
  file.addEventListener("change", bring);
  const close = openDialog("Take it along", [
    h("h3", {}, "This text"),
    h(
      "p",
      { class: "tools" },
      h("button", { onclick: () => saveText(store.state) }, "Save as text"),
      h("button", { onclick: () => copyText(store.state) }, "Copy the text"),
    ),
    h("h3", {}, "All branches, with settings and seeds"),
    h(
      "p",
      { class: "tools" },
      h(
        "button",
        { onclick: async () => save("text.json", JSON.stringify(await whole(), null, 1)) },
        "Save as JSON",
      ),
      h("button", { onclick: makeLink }, "Copy a link"),
    ),
    link,
    length,
    h("p", { class: "soft" }, "gpt2 replay repeats the JSON. A link holds everything in itself."),
    h("h3", {}, "Bring back"),
    h("p", {}, h("label", { for: "import-file" }, "A JSON file "), file),
    problem,
    h("p", { class: "tools" }, h("button", { onclick: fresh }, "Begin a new text")),
  ]);
}

/**
 * Open what the address of the page brings along, now and whenever it changes.
 *
 * @param {Page} page
 */
export function openLinks(page) {
  const open = async () => {
    try {
      const found = await brought(page.model);
      if (!found) return;
      const hasText = Object.values(page.store.state.tree.branches).some((b) => b.tokens.length);
      if (hasText && !(await confirmed())) return;
      adopt(page, found);
      say("The link is opened; undo brings back what was here.");
    } catch (error) {
      say(`Not opened: ${error instanceof Error ? error.message : error}.`, "error");
    }
  };
  window.addEventListener("hashchange", open);
  open();
}

/** @returns {Promise<boolean>} */
function confirmed() {
  return new Promise((resolve) => {
    const close = openDialog("Open the link?", [
      h("p", {}, "This link brings a text along. Yours gives way to it; undo brings it back."),
      h(
        "p",
        { class: "tools" },
        h("button", { class: "main", onclick: () => end(true) }, "Open the link"),
        h("button", { onclick: () => end(false) }, "Keep my text"),
      ),
    ]);
    const dialog = /** @type {HTMLDialogElement} */ (document.querySelector("#dialog"));
    dialog.onclose = () => resolve(false);
    const end = (/** @type {boolean} */ isOpened) => {
      resolve(isOpened);
      close();
    };
  });
}

/** @param {Page} page @param {Pick<State, "tree" | "settings" | "plan">} found */
function adopt({ store, model }, { tree, settings, plan }) {
  const sampling = { ...model.sampling, ...settings.sampling };
  store.settle();
  store.update(({ view }) => ({
    tree,
    settings: { ...settings, sampling },
    plan,
    view: { ...view, token: null },
  }));
}

/** @param {State} state */
function saveText({ tree }) {
  save("text.txt", textOf(tokensOf(tree)));
}

/** @param {State} state */
async function copyText({ tree }) {
  const isCopied = await copy(textOf(tokensOf(tree)));
  say(isCopied ? "Copied." : "This browser lets no page copy here: select the text instead.");
}

/** @param {string} text @returns {Promise<boolean>} whether the browser lets us */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** @param {string} name @param {string} content */
function save(name, content) {
  const address = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** A text can be taken along without a server: drafts stay what they are. @param {unknown} error */
function forgiven(error) {
  if (!(error instanceof Refusal)) throw error;
}
