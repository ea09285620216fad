/** Steering: the difference of two texts, added to the stream that goes into a layer. */

import { h } from "../dom.js";
import { visible } from "../tokens.js";
import { resteered, steered } from "../plan.js";
import { readOf } from "./text.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Steering} Steering
 */

const STRONG = 10; // the ends of the slider; the field beside it takes more
const STRONGEST = 1e6;

/** @param {Page} page @returns {HTMLElement} */
export function steer({ store, model }) {
  const list = h("ul", { class: "steerings" });
  const towards = h("input", { name: "towards", value: " thou", autocomplete: "off" });
  const away = h("input", { name: "away", value: " you", autocomplete: "off" });
  const layer = layers(model.config.n_layers, Math.floor(model.config.n_layers / 2));
  const add = () => {
    const last = Math.max(0, readOf(store.state.tree, model).length - 1);
    const steering = {
      towards: towards.value,
      away: away.value,
      layer: Number(layer.value),
      strength: 1,
      first: last,
    };
    store.update(({ plan }) => ({ plan: steered(plan, steering) }));
  };
  const form = h(
    "form",
    {
      class: "fields",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        add();
      },
    },
    h("label", {}, "Towards ", towards),
    h("label", {}, "Away from: ", away),
    h("label", {}, "Into layer ", layer),
    h("button", { class: "main", disabled: model.unchangeable !== null }, "Steer"),
  );
  let count = -1;
  store.subscribe(
    (state) => state.plan.steer,
    ({ plan }) => {
      if (plan.steer.length !== count) {
        count = plan.steer.length;
        list.replaceChildren(...plan.steer.map((_, i) => item({ store, model }, i)));
      }
      plan.steer.forEach((one, i) => show(list.children[i], one));
    },
  );
  return h(
    "div",
    {},
    h(
      "p",
      { class: "soft" },
      "What the model makes of one text less what it makes of another is a direction; added while " +
        "it reads, it leads the text there. A negative strength leads away. Turner et al. 2023 " +
        "(arXiv:2308.10248), in the form of Rimsky et al. 2023 (arXiv:2312.06681). Most words " +
        "begin with a space.",
    ),
    form,
    list,
  );
}

/** @param {number} count @param {number} chosen */
function layers(count, chosen) {
  return h(
    "select",
    {},
    ...Array.from({ length: count }, (_, i) => h("option", { selected: i === chosen }, i)),
  );
}

/** @param {Page} page @param {number} i Which steering. */
function item({ store, model }, i) {
  /** @param {Partial<Steering>} change @param {string} field */
  const change = (change, field) =>
    store.update(({ plan }) => ({ plan: resteered(plan, i, change) }), { join: `steer ${i} ${field}` });
  /** @param {Event} event */
  const strength = (event) => {
    const { value } = /** @type {HTMLInputElement} */ (event.target);
    const number = Number(value);
    if (value !== "" && Math.abs(number) <= STRONGEST) change({ strength: number }, "strength");
  };
  /** @param {Event} event */
  const first = (event) => {
    const { value } = /** @type {HTMLInputElement} */ (event.target);
    const number = Number(value);
    if (value !== "" && Number.isInteger(number) && number >= 0) change({ first: number }, "first");
  };
  const layer = layers(model.config.n_layers, 0);
  layer.addEventListener("change", () => change({ layer: Number(layer.value) }, "layer"));
  const range = { min: -STRONG, max: STRONG, step: 0.25, oninput: strength };
  const settle = () => store.settle();
  return h(
    "li",
    { class: "panel fields", onchange: settle },
    h("strong", { class: "token", "data-show": "words" }),
    h("label", { class: "wide" }, "Strength ", h("input", { type: "range", ...range })),
    h("input", {
      type: "number",
      step: "any",
      min: -STRONGEST,
      max: STRONGEST,
      oninput: strength,
      "aria-label": "Strength as a number",
      "data-show": "strength",
    }),
    h("label", {}, "Layer ", layer),
    h(
      "label",
      {},
      "From position ",
      h("input", {
        type: "number",
        min: 0,
        max: model.config.context_length - 1,
        oninput: first,
        "data-show": "first",
      }),
    ),
    h(
      "button",
      { onclick: () => store.update(({ plan }) => ({ plan: resteered(plan, i, null) })) },
      "Remove",
    ),
  );
}

/** @param {Element} element @param {Steering} steering */
function show(element, { towards, away, layer, strength, first }) {
  const words = /** @type {HTMLElement} */ (element.querySelector("[data-show=words]"));
  words.textContent = `${visible(away) || "nothing"} → ${visible(towards) || "nothing"}`;
  const values = [
    ["[type=range]", strength],
    ["[data-show=strength]", strength],
    ["[data-show=first]", first],
    ["select", layer],
  ];
  for (const [selector, value] of values) {
    const field = /** @type {HTMLInputElement} */ (element.querySelector(String(selector)));
    // A field that is being typed in says "1." or "-" for a moment.
    const isTyped = field === document.activeElement && field.type === "number";
    if (!isTyped || Number(field.value) !== value) field.value = String(value);
  }
}
