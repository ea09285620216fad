/** The board of switches: a row for each layer; its parts as a whole, and every head. */

import { h } from "../dom.js";
import { rove } from "../roving.js";
import { coveredBy, headName, partInWords, toggled } from "../plan.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Plan} Plan
 */

const WHOLES = /** @type {const} */ ([
  ["layer", "All", "all"],
  ["attention", "Attention", "att."],
  ["mlp", "MLP", "MLP"],
]);

/**
 * A grid in which arrows move, and space or enter switches.
 *
 * @param {Page} page
 * @returns {HTMLElement}
 */
export function board({ store, model }) {
  const { n_layers: layers, n_heads: heads } = model.config;
  const isUnchangeable = model.unchangeable !== null;
  /** @type {HTMLButtonElement[][]} */
  const buttons = Array.from({ length: layers }, (_, layer) => [
    ...WHOLES.map(([kind, , short]) => button(`${kind}.${layer}`, short, isUnchangeable)),
    ...Array.from({ length: heads }, (_, head) =>
      button(headName(layer, head), String(head), isUnchangeable),
    ),
  ]);
  const table = h(
    "table",
    { role: "grid", "aria-label": "Switches of layers and heads", class: "board" },
    h("thead", {}, ...headings(heads)),
    h("tbody", {}, ...buttons.map(row)),
  );
  table.addEventListener("click", (event) => {
    const name = /** @type {Element} */ (event.target).closest("button")?.dataset.part;
    if (name) store.update(({ plan }) => ({ plan: toggled(plan, name) }));
  });
  buttons[0][0].tabIndex = 0;
  rove(table, "button", WHOLES.length + heads);
  store.subscribe(
    (state) => state.plan,
    ({ plan }) => buttons.flat().forEach((one) => show(one, plan)),
  );
  return h("div", { class: "scroll" }, table);
}

/** @param {string} name @param {string} text @param {boolean} disabled */
function button(name, text, disabled) {
  return h("button", { class: "switch", tabindex: -1, "data-part": name, disabled }, text);
}

/** @param {number} heads */
function headings(heads) {
  const heading = { scope: "col", role: "columnheader" };
  const name = (/** @type {number} */ i) => [h("span", { class: "unseen" }, "Head "), i];
  return [
    h(
      "tr",
      { role: "row" },
      h("th", { ...heading, rowspan: 2 }, "Layer"),
      ...WHOLES.map(([, label]) => h("th", { ...heading, rowspan: 2 }, label)),
      h("th", { ...heading, scope: "colgroup", colspan: heads }, "Heads"),
    ),
    h(
      "tr",
      { role: "row" },
      ...Array.from({ length: heads }, (_, i) => h("th", heading, ...name(i))),
    ),
  ];
}

/** @param {HTMLButtonElement[]} buttons @param {number} layer */
function row(buttons, layer) {
  return h(
    "tr",
    { role: "row" },
    h("th", { scope: "row", role: "rowheader" }, layer),
    ...buttons.map((one) => h("td", { role: "gridcell" }, one)),
  );
}

/**
 * A switch as the plan has it; what lies in something larger that is off looks so too.
 *
 * @param {HTMLButtonElement} one
 * @param {Plan} plan
 */
function show(one, plan) {
  const name = /** @type {string} */ (one.dataset.part);
  const isOff = plan.ablate.includes(name);
  const larger = isOff ? null : coveredBy(plan, name);
  const state = isOff ? "off" : larger ? "covered" : "on";
  if (one.dataset.state === state && one.title) return;
  one.dataset.state = state;
  one.setAttribute("aria-pressed", String(isOff));
  const label = `${partInWords(name)} off`;
  one.setAttribute("aria-label", larger ? `${label}; so is all of ${partInWords(larger)}` : label);
  one.title = `${partInWords(name)}: ${larger ? `off with ${partInWords(larger)}` : state}`;
}
