/** Heads that are known by name: where each looks in random tokens that repeat. */

import { Refusal, get } from "../api.js";
import { bars, heatmap } from "../charts.js";
import { h } from "../dom.js";
import { headName, toggled } from "../plan.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {"induction" | "previous" | "first"} Kind
 * @typedef {Record<Kind, number[][]> & {texts: number, tokens: number}} Scores Layers × heads each.
 */

const KINDS = /** @type {const} */ ([
  [
    "induction",
    "Induction heads",
    "look from a token at those that followed the same token before, and so can repeat what came " +
      "then: prefix matching, Olsson et al. 2022 (arXiv:2209.11895).",
  ],
  [
    "previous",
    "Previous-token heads",
    "look at the token before, which induction needs a layer below: Elhage et al. 2021 " +
      "(transformer-circuits.pub/2021/framework).",
  ],
  [
    "first",
    "First-token heads",
    "look at the first token of all, where heads rest that find nothing: attention sinks, Xiao " +
      "et al. 2023 (arXiv:2309.17453).",
  ],
]);
const STRONGEST = 8;
const NAMED = 0.4; // a head is called so from here on, as in `gpt2 heads`

/**
 * The heads with the highest scores, best first.
 *
 * @param {number[][]} scores
 * @param {number} count
 */
export function strongest(scores, count) {
  const all = scores.flatMap((row, layer) =>
    row.map((score, head) => ({ name: headName(layer, head), score })),
  );
  return all.sort((a, b) => b.score - a.score).slice(0, count);
}

/** @param {Page} page @returns {{element: HTMLElement, open: () => Promise<void>}} */
export function heads(page) {
  const message = h("p", { role: "status" });
  const shown = h("div", {});
  const choice = h(
    "div",
    { role: "radiogroup", "aria-label": "Kind of head", class: "fields" },
    ...KINDS.map(([kind, title], i) =>
      h(
        "label",
        {},
        h("input", { type: "radio", name: "kind", value: kind, checked: i === 0, onchange: draw }),
        ` ${title}`,
      ),
    ),
  );
  /** @type {Scores | null} */
  let scores = null;
  let isAsked = false;

  function draw() {
    if (scores === null) return;
    const { value } = /** @type {HTMLInputElement} */ (choice.querySelector(":checked"));
    shown.replaceChildren(...drawn(scores, /** @type {Kind} */ (value), page));
  }

  async function open() {
    if (isAsked) return;
    isAsked = true;
    message.textContent = "The model reads random tokens that repeat …";
    try {
      scores = /** @type {Scores} */ (await get("heads"));
      message.textContent = "";
      draw();
    } catch (error) {
      isAsked = false;
      if (!(error instanceof Refusal)) throw error;
      message.textContent = error.message;
    }
  }
  return { element: h("div", { class: "heads" }, choice, message, shown), open };
}

/** @param {Scores} scores @param {Kind} chosen @param {Page} page @returns {HTMLElement[]} */
function drawn(scores, chosen, page) {
  const [kind, title, definition] = /** @type {typeof KINDS[number]} */ (
    KINDS.find(([name]) => name === chosen)
  );
  const found = scores[kind];
  const best = strongest(found, STRONGEST);
  const none = best[0].score < NAMED ? ` No head here reaches ${NAMED}, from which one is named so.` : "";
  return [
    h("p", { class: "soft" }, `${title} ${definition}${none}`),
    heatmap({
      rows: found.map((_, i) => String(i)),
      columns: found[0].map((_, i) => String(i)),
      values: found.flat(),
      label: `${title}: mean share of their attention, over ${scores.texts} texts of ${scores.tokens} tokens. Choosing one switches it off, or on again.`,
      palette: "sequential",
      format: (score) => score.toFixed(2),
      corner: "layer, head",
      onpick: (layer, head) => flip(page, headName(layer, head)),
    }),
    bars(
      best.map(({ name, score }) => ({ name, value: score, onpick: () => flip(page, name) })),
      { label: `${title}, the strongest`, first: "head", unit: "score", to: 1 },
    ),
  ];
}

/** @param {Page} page @param {string} name */
function flip({ store, model }, name) {
  if (model.unchangeable !== null) return;
  store.update(({ plan }) => ({ plan: toggled(plan, name) }));
}
