/**
 * Which part of the model adds how much to a logit, or to the difference of two.
 *
 * @typedef {import("./ask.js").Contributions} Contributions
 * @typedef {import("./ask.js").Inspection} Inspection
 * @typedef {{name: string, value: number, layer: number | null}} Part
 */

import { bars, heatmap } from "../charts.js";
import { h } from "../dom.js";
import { added, exact } from "../numbers.js";

const SHOWN = 20;

/**
 * All parts in the order in which they write to the stream.
 *
 * @param {Contributions} of
 * @param {Contributions} [less] Of the token whose logit is subtracted.
 * @returns {Part[]}
 */
export function parts(of, less) {
  /** @param {(c: Contributions) => number} pick */
  const value = (pick) => pick(of) - (less ? pick(less) : 0);
  /** @type {Part[]} */
  const found = [
    { name: "token embedding", layer: null, value: value((c) => c.token_embedding) },
    { name: "position embedding", layer: null, value: value((c) => c.position_embedding) },
  ];
  of.heads.forEach((heads, layer) => {
    heads.forEach((_, i) => {
      found.push({ name: `head ${layer}.${i}`, layer, value: value((c) => c.heads[layer][i]) });
    });
    const bias = value((c) => c.attention_bias[layer]);
    found.push({ name: `attention bias ${layer}`, layer, value: bias });
    found.push({ name: `MLP ${layer}`, layer, value: value((c) => c.feed_forward[layer]) });
  });
  const steering = value((c) => c.steering);
  if (steering !== 0) found.push({ name: "steering", layer: null, value: steering });
  const shift = { name: "final norm's shift β", layer: null, value: value((c) => c.final_shift) };
  return [...found, shift];
}

/**
 * @param {Inspection} found
 * @param {{order: "size" | "layer", onpick: (layer: number, head: number | null) => void,
 *          label: string}} options
 */
export function partsChart({ contributions, versus }, { order, onpick, label }) {
  const all = parts(contributions, versus);
  const total = all.reduce((sum, { value }) => sum + value, 0);
  const sum = h("p", { "data-value": total, title: exact(total) }, `Together ${added(total)}.`);
  if (order === "layer") return h("div", {}, byLayer(contributions, versus, label, onpick), sum);
  const sorted = all.toSorted((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const box = h("div", {}, chart(sorted.slice(0, SHOWN)));
  return h("div", {}, box, sorted.length > SHOWN && rest(), sum);

  /** @param {Part[]} shown */
  function chart(shown) {
    const rows = shown.map(({ name, value, layer }) => {
      const head = name.startsWith("head ") ? Number(name.split(".")[1]) : null;
      return { name, value, onpick: layer === null ? undefined : () => onpick(layer, head) };
    });
    return bars(rows, { label, unit: "logit", format: added });
  }

  function rest() {
    const left = sorted.slice(SHOWN);
    const value = left.reduce((a, part) => a + part.value, 0);
    const note = h("p", { class: "soft" }, `${left.length} smaller parts add ${added(value)}. `);
    const showAll = () => {
      box.replaceChildren(chart(sorted));
      note.replaceChildren(`All ${sorted.length} parts are shown.`);
    };
    note.append(h("button", { onclick: showAll }, "Show them all"));
    return note;
  }
}

/**
 * @param {Contributions} of
 * @param {Contributions | undefined} less
 * @param {string} label
 * @param {(layer: number, head: number | null) => void} onpick
 */
function byLayer(of, less, label, onpick) {
  const all = parts(of, less);
  const layers = of.heads.map((_, layer) => all.filter((part) => part.layer === layer));
  const heads = of.heads[0].length;
  const columns = [...of.heads[0].map((_, head) => String(head)), "bias", "MLP"];
  const others = all.filter((part) => part.layer === null);
  return h(
    "div",
    {},
    heatmap({
      rows: layers.map((_, layer) => `block ${layer}`),
      columns,
      values: layers.flatMap((row) => row.map(({ value }) => value)),
      label: `${label}: heads, the bias they share, MLP`,
      corner: "block, head",
      palette: "diverging",
      format: added,
      onpick: (layer, column) => onpick(layer, column < heads ? column : null),
    }),
    bars(others, { label: `${label}: parts outside of blocks`, unit: "logit", format: added }),
  );
}
