/**
 * The numbers of the picture as a table.
 *
 * @typedef {import("./ask.js").Inspection} Inspection
 */

import { h } from "../dom.js";
import { exact } from "../numbers.js";
import { visible } from "../tokens.js";

const HEADS = ["after", "attention adds", "MLP adds", "stream", "would say", "probability"];

/** @param {() => Inspection | null} latest */
export function summary(latest) {
  const label = "Table of the picture";
  const box = h("div", { class: "scrolled", role: "group", "aria-label": label, tabindex: 0 });
  const details = h("details", {}, h("summary", {}, label), box);
  details.addEventListener("toggle", draw);
  return { element: details, draw };

  function draw() {
    const found = latest();
    box.replaceChildren(...(details.open && found ? [table(found, label)] : []));
  }
}

/** @param {Inspection} found @param {string} label */
function table(found, label) {
  const { activations, lens, target } = found;
  const own = `probability of ${visible(target.text)}`;
  const heads = [...HEADS, own, "its rank"].map((text) => h("th", { scope: "col" }, text));
  const rows = activations.stream.map(([stream], i) => [
    i > 0 ? exact(activations.attention[i - 1][0]) : "",
    i > 0 ? exact(activations.feed_forward[i - 1][0]) : "",
    exact(stream),
    visible(/** @type {string[]} */ (lens.texts[i].at(-1))[0]),
    exact(/** @type {number[]} */ (lens.probabilities[i].at(-1))[0]),
    exact(lens.target_probability[i]),
    lens.target_rank[i],
  ]);
  return h(
    "table",
    {},
    h("caption", {}, `${label}: lengths of vectors, and the logit lens`),
    h("thead", {}, h("tr", {}, ...heads)),
    h("tbody", {}, ...rows.map(line)),
  );
}

/** @param {(string | number)[]} cells @param {number} i */
function line(cells, i) {
  const name = i === 0 ? "embeddings" : `block ${i - 1}`;
  const shown = cells.map((cell, j) =>
    h("td", { class: j === 3 ? "token" : "number" }, cell),
  );
  return h("tr", {}, h("th", { scope: "row" }, name), ...shown);
}
