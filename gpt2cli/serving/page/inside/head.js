/**
 * One head opened: from scores over mask and softmax to the values that flow to a token.
 *
 * @typedef {import("./ask.js").Head} Head
 * @typedef {import("../charts.js").Line} Line
 */

import { heatmap, lineUp } from "../charts.js";
import { h } from "../dom.js";
import { percent, short } from "../numbers.js";
import { lesson } from "./lessons.js";

const SHOWN = 48; // tokens of a longer text, those with most weight

/**
 * @param {Head} head
 * @param {{layer: number, head: number, position: number}} place
 * @param {readonly string[]} labels Of all tokens.
 * @returns {HTMLElement[]}
 */
export function headParts(head, place, labels) {
  const name = `Head ${place.layer}.${place.head}`;
  return [
    lesson("head"),
    rows(head, place, labels, name),
    unfolded("The whole map, token by token", () => whole(head, labels, name, place), true),
    unfolded("q, k and v of this token", () => vectors(head, name), false),
  ];
}

/**
 * What is made when it is unfolded.
 *
 * @param {string} title
 * @param {() => Node} make
 * @param {boolean} isOpen From the beginning.
 */
function unfolded(title, make, isOpen) {
  const details = h("details", { open: isOpen }, h("summary", {}, title));
  if (isOpen) details.append(make());
  else details.addEventListener("toggle", () => details.append(make()), { once: true });
  return details;
}

/**
 * @param {Head} head
 * @param {{position: number}} place
 * @param {readonly string[]} labels
 * @param {string} name
 */
function rows(head, { position }, labels, name) {
  const size = labels.length;
  const all = labels.map((_, i) => i);
  const few = size <= SHOWN ? all : chosen(head.weights, position, size);
  const box = h("div", {}, chart(few));
  return h("div", {}, box, few.length < size && rest());

  /** @param {number[]} shown */
  function chart(shown) {
    return lineUp(
      shown.map((i) => line(head, i, position, labels)),
      {
        label: `${name}: scores, weights and values of each token, for the token at ${position}`,
        first: "token",
        columns: [
          { name: "score q·k/√D" },
          { name: "mask" },
          { name: "softmax: weight", format: percent, to: 1 },
          { name: "‖weight · v‖", format: short },
        ],
      },
    );
  }

  function rest() {
    const shown = new Set(few);
    const left = all.filter((i) => !shown.has(i));
    const seen = left.filter((i) => i <= position);
    const sum = seen.reduce((total, i) => total + head.weights[i], 0);
    const others = [
      seen.length > 0 && `${seen.length} with less weight, together ${percent(sum)}`,
      left.length > seen.length && `${left.length - seen.length} later ones, which are masked`,
    ];
    const shownOf = `${few.length} of ${size} tokens are shown; left out are `;
    const note = h("p", { class: "soft" }, shownOf);
    const showAll = () => {
      box.replaceChildren(chart(all));
      note.textContent = `All ${size} tokens are shown.`;
    };
    note.append(others.filter(Boolean).join(" and "), ". ");
    note.append(h("button", { onclick: showAll }, `Show all ${size}`));
    return note;
  }
}

/**
 * Of a long text, those tokens of which a head takes most, and later ones if there is room.
 *
 * @param {readonly number[]} weights
 * @param {number} position
 * @param {number} size
 */
function chosen(weights, position, size) {
  const seen = Array.from({ length: position + 1 }, (_, i) => i);
  const best = seen.sort((a, b) => weights[b] - weights[a]).slice(0, SHOWN);
  for (let i = position + 1; i < size && best.length < SHOWN; i += 1) best.push(i);
  return best.sort((a, b) => a - b);
}

/**
 * @param {Head} head
 * @param {number} i
 * @param {number} position
 * @param {readonly string[]} labels
 * @returns {Line}
 */
function line(head, i, position, labels) {
  const name = `${i} ${labels[i]}`;
  if (i > position) {
    return { name, values: [head.scores[i], "masked: later", null, null] };
  }
  const values = [head.scores[i], "seen", head.weights[i], head.values[i]];
  return { name, values, current: i === position };
}

/**
 * @param {Head} head
 * @param {readonly string[]} labels
 * @param {string} name
 * @param {{position: number}} place
 */
function whole(head, labels, name, { position }) {
  const size = labels.length;
  const values = head.map.slice();
  for (let i = 0; i < size; i += 1) values.fill(Number.NaN, i * size + i + 1, (i + 1) * size);
  const names = labels.map((label, i) => `${i} ${label}`);
  return heatmap({
    rows: names,
    columns: names,
    values,
    label: `${name}: how much each token (row) takes from each before it (column)`,
    corner: "to, from",
    root: true,
    most: 1,
    chosen: position,
    format: short,
  });
}

/** @param {Head} head @param {string} name */
function vectors({ q, k, v, output_norm }, name) {
  return h(
    "div",
    {},
    heatmap({
      rows: ["q", "k", "v"],
      columns: q.map((_, i) => String(i)),
      values: [...q, ...k, ...v],
      label: `${name}: query, key and value of this token, ${q.length} numbers each`,
      corner: "vector",
    }),
    h("p", {}, `What all of its weighted values sum to has the length ${short(output_norm)}.`),
  );
}
