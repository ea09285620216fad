/** All texts of the page as a tree: to walk, to choose for comparison, to rename, to prune. */

import { h, paced, say } from "../dom.js";
import { stop } from "../roving.js";
import { textOf } from "../tokens.js";
import { path, pruned, renamed, walked } from "../tree.js";
import { compare } from "./compare.js";
import { summary, together } from "./figures.js";
import { rowsOf } from "./rows.js";
import { signed } from "./signs.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Tree} Tree
 * @typedef {import("./rows.js").Row} Row
 */

const EXCERPT = 60; // characters
const PACE = 150; // milliseconds between two pictures of a tree that grows

/**
 * The panel of all texts.
 *
 * @param {Page} page
 * @param {import("./judging.js").Judge} judge
 * @returns {HTMLElement}
 */
export function branches({ store }, judge) {
  const list = h("div", { role: "tree", "aria-label": "Branches", "aria-multiselectable": "true" });
  /** @type {Set<string>} Those to compare. */
  const chosen = new Set();
  /** @type {Row[]} */
  let rows = [];
  /** @type {string | null} The row that is being renamed. */
  let naming = null;

  const tools = {
    name: h("button", { onclick: () => name(current()) }, "Rename"),
    prune: h("button", { onclick: () => prune(current()) }, "Prune"),
    compare: h("button", { onclick: () => compare(store, judge, [...chosen]) }, "Compare"),
  };

  /** The row that has the focus, or the one whose text is shown. */
  const current = () => {
    const stopped = list.querySelector('[role="treeitem"][tabindex="0"]');
    const id = stopped instanceof HTMLElement ? stopped.dataset.id : store.state.tree.leaf;
    return /** @type {Row} */ (rows.find((row) => row.id === id) ?? rows[0]);
  };
  /** @param {Row} row */
  const walk = (row) =>
    store.update(({ tree, view }) => ({
      tree: walked(tree, row.id),
      view: { ...view, token: null },
    }));
  /** @param {Row} row */
  const prune = (row) => {
    store.update(({ tree, view }) => ({
      tree: pruned(tree, row.first),
      view: { ...view, token: null },
    }));
    say("Pruned; undo brings it back.");
  };
  /** @param {Row} row */
  const choose = (row) => {
    if (!chosen.delete(row.id)) chosen.add(row.id);
    show();
  };
  /** @param {Row} row */
  const name = (row) => {
    naming = row.id;
    const field = h("input", { value: row.name, "aria-label": "Name of the branch", maxlength: 200 });
    const end = (/** @type {boolean} */ isKept) => {
      if (naming !== row.id) return;
      naming = null;
      const given = field.value.trim();
      if (isKept && given !== row.name) {
        store.update(({ tree }) => ({ tree: renamed(tree, row.id, given) }));
      }
      show();
      focus(row.id);
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    elementOf(row.id)?.replaceChildren(field);
    field.select();
  };

  /** @param {string} id */
  const elementOf = (id) =>
    /** @type {HTMLElement[]} */ ([...list.children]).find(({ dataset }) => dataset.id === id);
  /** @param {string} id */
  const focus = (id) => elementOf(id)?.focus();

  const show = () => {
    const { tree } = store.state;
    rows = rowsOf(tree);
    for (const id of chosen) if (!rows.some((row) => row.id === id)) chosen.delete(id);
    const hadFocus = list.contains(document.activeElement);
    const at = current().id;
    const shown = new Set(path(tree).map(({ id }) => id));
    if (naming !== null && rows.some(({ id }) => id === naming)) return;
    naming = null;
    const items = rows.map((row) => item(row, tree, shown, chosen));
    list.replaceChildren(...items);
    const here = elementOf(at) ?? elementOf(tree.leaf) ?? items[0];
    stop(list, '[role="treeitem"]', hadFocus ? here : (elementOf(tree.leaf) ?? here));
    if (hadFocus) here.focus();
    tools.compare.disabled = chosen.size < 2;
    tools.compare.textContent = chosen.size < 2 ? "Compare" : `Compare ${chosen.size}`;
  };

  list.addEventListener("click", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    const element = /** @type {HTMLElement | null} */ (target.closest('[role="treeitem"]'));
    const row = rows.find(({ id }) => id === element?.dataset.id);
    if (!row || target instanceof HTMLInputElement) return;
    if (target.closest(".choose") || event.ctrlKey || event.metaKey) choose(row);
    else walk(row);
    focus(row.id);
  });
  list.addEventListener("dblclick", () => name(current()));
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const row = current();
    const there = neighbour(rows, row, event.key);
    if (there) {
      stop(list, '[role="treeitem"]', /** @type {HTMLElement} */ (elementOf(there.id)));
      focus(there.id);
    } else if (event.key === "Enter") walk(row);
    else if (event.key === " ") choose(row);
    else if (event.key === "F2") name(row);
    else if (event.key === "Delete") prune(row);
    else return;
    event.preventDefault();
  });
  store.subscribe(({ tree }) => tree, paced(show, PACE));
  show();
  return h(
    "section",
    { class: "panel branches", "aria-label": "Branches" },
    h("h2", {}, "Branches"),
    list,
    h("div", { class: "tools" }, tools.name, tools.prune, tools.compare),
  );
}

/**
 * Where a key leads from a row.
 *
 * @param {Row[]} rows
 * @param {Row} row
 * @param {string} key
 * @returns {Row | undefined}
 */
function neighbour(rows, row, key) {
  const at = rows.indexOf(row);
  if (key === "ArrowDown") return rows[at + 1];
  if (key === "ArrowUp") return rows[at - 1];
  if (key === "ArrowRight") return rows.find(({ parent }) => parent === row.id);
  if (key === "ArrowLeft") return rows.find(({ id }) => id === row.parent);
  if (key === "Home") return rows[0];
  return key === "End" ? rows.at(-1) : undefined;
}

/**
 * @param {Row} row
 * @param {Tree} tree
 * @param {Set<string>} shown
 * @param {Set<string>} chosen
 */
function item(row, tree, shown, chosen) {
  const { count, judged, bits } = together(row.branches.map(({ tokens }) => summary(tokens)));
  const words = signed(textOf(row.branches.flatMap(({ tokens }) => tokens).slice(0, EXCERPT)));
  const excerpt = words.replace(/\s+/g, " ").trim().slice(0, EXCERPT) || "(empty)";
  const element = h(
    "div",
    {
      role: "treeitem",
      "data-id": row.id,
      "aria-level": row.level,
      "aria-posinset": row.place,
      "aria-setsize": row.size,
      "aria-selected": String(row.id === tree.leaf),
      "aria-checked": String(chosen.has(row.id)),
      "aria-expanded": row.hasChildren ? "true" : null,
      class: shown.has(row.id) ? "shown" : "",
      tabindex: "-1",
    },
    h("span", { class: "choose", title: "Choose it for comparison (Space)", "aria-hidden": "true" }),
    h("span", { class: "words" }, row.name && h("b", {}, `${signed(row.name)} `), excerpt),
    h("span", { class: "soft number" }, `${count} tok.${judged ? ` · ${bits.toFixed(1)} bits` : ""}`),
  );
  element.style.setProperty("--level", String(row.level - 1));
  return element;
}
