/** The room to write in: the text, what could stand instead, all branches, and the controls. */

import { h, paced } from "../dom.js";
import { textOf } from "../tokens.js";
import { tokensOf } from "../tree.js";
import { alternatives, take } from "./alternatives.js";
import { branches } from "./branches.js";
import { openControls } from "./controls.js";
import { editor } from "./editor.js";
import { LEVELS } from "./figures.js";
import { Judge } from "./judging.js";
import { openLinks, share } from "./sharing.js";
import { Writer } from "./writing.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").View} View
 */

const PACE = 80; // milliseconds between two pictures of the token at the caret
const COLOURS = /** @type {const} */ (["surprisal", "rank", "none"]);

/** @param {HTMLElement} room @param {Page} page */
export function openWrite(room, page) {
  const judge = new Judge(page.store);
  const writer = new Writer(page, judge);
  const text = editor(page, writer);
  const controls = h("div", { id: "controls" });
  const right = h("details", { class: "right" }, h("summary", {}, "Sampling"), controls);
  const wide = matchMedia("(min-width: 768px)");
  const unfold = () => {
    right.open = wide.matches;
  };
  wide.addEventListener("change", unfold);
  unfold();
  room.append(
    h(
      "div",
      { class: "write" },
      h("div", { class: "desk" }, bar(page, judge, writer), text.element, legend(page)),
      h("div", { class: "middle" }, tokenPanel(page, writer, text.focus), branches(page, judge)),
      right,
      heard(page, writer),
    ),
  );
  openControls(controls, page);
  controls.addEventListener("take", (event) => {
    const { tree, view } = page.store.state;
    const place = Math.min(view.token ?? Infinity, tokensOf(tree).length);
    take(page.store, place, /** @type {CustomEvent} */ (event).detail);
    text.focus();
    writer.write();
  });
  bindKeys(page, writer);
  openLinks(page);
}

/** @param {Page} page @param {Judge} judge @param {Writer} writer */
function bar(page, judge, writer) {
  const { store } = page;
  const go = h("button", { class: "main", title: "Ctrl+Enter", onclick: () => writer.write() });
  const stop = h("button", { title: "Escape", onclick: () => writer.stop() }, "Stop");
  const colour = h(
    "select",
    { id: "colour", title: "Alt+C", onchange: () => look(page, { colour: chosen() }) },
    h("option", { value: "surprisal" }, "by surprisal"),
    h("option", { value: "rank" }, "by rank"),
    h("option", { value: "none" }, "off"),
  );
  const chosen = () => /** @type {View["colour"]} */ (colour.value);
  const limits = h("input", {
    type: "checkbox",
    id: "boundaries",
    title: "Alt+B",
    onchange: () => look(page, { boundaries: limits.checked }),
  });
  writer.watch((isWriting) => {
    stop.disabled = !isWriting;
  });
  store.subscribe(
    ({ settings }) => settings.n,
    ({ settings: { n } }) => {
      go.textContent = n === 1 ? "Continue" : `Continue × ${n}`;
    },
  );
  store.subscribe(
    ({ view }) => view,
    ({ view }) => {
      colour.value = view.colour;
      limits.checked = view.boundaries;
    },
  );
  return h(
    "div",
    { class: "bar-tools", role: "group", "aria-label": "Writing" },
    go,
    stop,
    h("button", { onclick: () => share(page, judge), title: "Save, copy, link, open" }, "Share…"),
    h("span", { class: "gap" }),
    h("label", { for: "colour" }, "Colour ", colour),
    h("label", { for: "boundaries" }, limits, " Tokens"),
  );
}

/** What the colours mean, with the lines that say it without colour. @param {Page} page */
function legend({ store }) {
  const element = h("p", { class: "legend soft" });
  store.subscribe(
    ({ view }) => view.colour,
    ({ view: { colour } }) => {
      element.hidden = colour === "none";
      element.dataset.colour = colour;
      if (colour === "none") return;
      const title = colour === "rank" ? "rank " : "surprisal ";
      const parts = LEVELS[colour].map((name, i) => h("span", { class: `s${i} r${i}` }, name));
      element.replaceChildren(title, ...parts.flatMap((part) => [part, " "]));
    },
  );
  return element;
}

/** @param {Page} page @param {Writer} writer @param {() => void} focus */
function tokenPanel({ store }, writer, focus) {
  const body = h("div", {});
  const show = () => {
    const { tree, view } = store.state;
    const tokens = tokensOf(tree);
    const index = Math.min(view.token ?? Infinity, tokens.length - 1);
    if (index < 0) {
      body.replaceChildren(h("p", { class: "soft" }, "Nothing is written yet."));
      return;
    }
    const parts = alternatives(tokens[index], index, tokens.length, (other) => {
      take(store, index, other);
      focus();
      writer.write();
    });
    body.replaceChildren(...parts);
  };
  const soon = paced(show, PACE);
  store.subscribe(({ tree }) => tree, soon);
  store.subscribe(({ view }) => view.token, soon);
  body.addEventListener("keydown", (event) => {
    const buttons = [...body.querySelectorAll("button")];
    const at = buttons.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)]?.focus();
    else if (/^[1-9]$/.test(event.key)) buttons[Number(event.key) - 1]?.click();
    else return;
    event.preventDefault();
  });
  return h(
    "section",
    { class: "panel token-panel", "aria-label": "The token at the caret" },
    h("h2", {}, "At the caret"),
    body,
  );
}

/** What is written, for those who hear it: once, when it has ended. @param {Page} page @param {Writer} writer */
function heard({ store }, writer) {
  const element = h("p", { class: "unseen", role: "log", "aria-label": "What was written" });
  let before = 0;
  writer.watch((isWriting) => {
    const tokens = tokensOf(store.state.tree);
    if (isWriting) before = tokens.length;
    else element.textContent = textOf(tokens.slice(before));
  });
  return element;
}

/** @param {Page} page @param {Partial<View>} change */
function look({ store }, change) {
  store.update(({ view }) => ({ view: { ...view, ...change } }));
}

/** Keys of this room, wherever its focus is. @param {Page} page @param {Writer} writer */
function bindKeys(page, writer) {
  document.addEventListener("keydown", (event) => {
    const { view } = page.store.state;
    if (view.room !== "write" || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") writer.stop();
    else if (event.altKey && event.code === "KeyC") {
      const next = COLOURS[(COLOURS.indexOf(view.colour) + 1) % COLOURS.length];
      look(page, { colour: next });
    } else if (event.altKey && event.code === "KeyB") look(page, { boundaries: !view.boundaries });
    else return;
    event.preventDefault();
  });
}
