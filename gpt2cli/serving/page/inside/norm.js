/**
 * What a layer norm does to the numbers of a vector: their mean and spread before, normalised, and
 * scaled and shifted.
 *
 * @typedef {import("./ask.js").Norms} Norms
 */

import { h } from "../dom.js";
import { exact, short } from "../numbers.js";

/**
 * @param {Norms} norms
 * @param {number} index Which of the 2L + 1 norms.
 * @param {string} label
 */
export function normTable(norms, index, label) {
  const stages = [
    { name: "before", mean: norms.mean_in, variance: norms.variance_in },
    { name: "normalised", mean: norms.mean_normalised, variance: norms.variance_normalised },
    { name: "scaled and shifted", mean: norms.mean_out, variance: norms.variance_out },
  ].map(({ name, mean, variance }) => ({
    name,
    mean: /** @type {number} */ (mean[index].at(-1)),
    variance: /** @type {number} */ (variance[index].at(-1)),
  }));
  const reach = Math.max(...stages.map((s) => Math.abs(s.mean) + Math.sqrt(s.variance)));
  const heads = ["stage", "μ − σ to μ + σ", "mean μ", "variance σ²", "σ"];
  return h(
    "div",
    { class: "scrolled", role: "group", "aria-label": label, tabindex: 0 },
    h(
      "table",
      { class: "norms" },
      h("caption", { class: "unseen" }, label),
      h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, ...stages.map((stage) => row(stage, reach))),
    ),
  );
}

/** @param {{name: string, mean: number, variance: number}} stage @param {number} reach */
function row({ name, mean, variance }, reach) {
  const deviation = Math.sqrt(variance);
  const drawn = h("span", { class: "spread" }, h("span", {}));
  drawn.style.setProperty("--start", String((mean - deviation + reach) / (2 * reach)));
  drawn.style.setProperty("--size", String(deviation / reach));
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    h("td", { class: "axis", "aria-hidden": "true" }, drawn),
    ...[mean, variance, deviation].map(number),
  );
}

/** @param {number} value */
function number(value) {
  return h("td", { class: "number", title: exact(value), "data-value": value }, short(value));
}
