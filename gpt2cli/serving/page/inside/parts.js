/**
 * Which part of the model adds how much to a logit, or to the difference of two.
 *
 * @typedef {import("./ask.js").Contributions} Contributions
 * @typedef {import("./ask.js").Inspection} Inspection
 * @typedef {{name: string, value: number, layer: number | null}} Part
 * @typedef {(layer: number, head: number | null) => void} Onpick
 */

import { bars, heatmap } from "../charts.js";
import { h } from "../dom.js";
import { added, brief, exact } from "../numbers.js";
import { visible } from "../tokens.js";

const SHOWN = 20;

/** What is taken apart: A, or A minus B. @param {Inspection} found */
export function taken({ target, versus }) {
  const less = versus ? ` minus ${visible(versus.target.text)}` : "";
  return `the logit of ${visible(target.text)}${less}`;
}

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
 * The parts, the largest first, and beside them by layer.
 *
 * @param {Inspection} found
 * @param {Onpick} onpick
 */
export function partsCharts(found, onpick) {
  const all = parts(found.contributions, found.versus);
  const total = all.reduce((sum, { value }) => sum + value, 0);
  const label = `Added to ${taken(found)}`;
  const sum = h("p", { class: "sum", "data-value": total, title: exact(total) });
  sum.append(`All ${all.length} parts together: ${added(total)}, ${taken(found)}.`);
  const charts = [sorted(all, label, onpick), byLayer(all, label, onpick)];
  return [sum, h("div", { class: "beside-each-other" }, ...charts)];
}

/** @param {Part[]} all @param {string} label @param {Onpick} onpick */
function sorted(all, label, onpick) {
  const ordered = all.toSorted((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const box = h("div", {}, chart(ordered.slice(0, SHOWN)));
  return h("div", {}, h("h3", {}, "The largest first"), box, ordered.length > SHOWN && rest());

  /** @param {Part[]} shown */
  function chart(shown) {
    const rows = shown.map(({ name, value, layer }) => {
      const head = name.startsWith("head ") ? Number(name.split(".")[1]) : null;
      return { name, value, onpick: layer === null ? undefined : () => onpick(layer, head) };
    });
    return bars(rows, { label, unit: "logit", format: added });
  }

  function rest() {
    const left = ordered.slice(SHOWN);
    const value = left.reduce((a, part) => a + part.value, 0);
    const note = h("p", { class: "soft" }, `${left.length} smaller parts add ${added(value)}. `);
    const showAll = () => {
      box.replaceChildren(chart(ordered));
      note.replaceChildren(`All ${ordered.length} parts are shown.`);
    };
    note.append(h("button", { onclick: showAll }, "Show them all"));
    return note;
  }
}

/** @param {Part[]} all @param {string} label @param {Onpick} onpick */
function byLayer(all, label, onpick) {
  const inside = all.filter((part) => part.layer !== null);
  const layers = 1 + Math.max(...inside.map(({ layer }) => /** @type {number} */ (layer)));
  const columns = inside.length / layers;
  const heads = columns - 2;
  const names = Array.from({ length: heads }, (_, head) => String(head));
  const map = heatmap({
    rows: Array.from({ length: layers }, (_, layer) => `block ${layer}`),
    columns: [...names, "bias", "MLP"],
    values: inside.map(({ value }) => value),
    label: "Heads by their numbers, the bias that they share, and the MLP",
    corner: "block, head",
    palette: "diverging",
    format: brief,
    onpick: (layer, column) => onpick(layer, column < heads ? column : null),
  });
  const others = all.filter((part) => part.layer === null);
  const outside = `${label}: parts outside of blocks`;
  const title = h("h3", {}, "By layer");
  return h("div", {}, title, map, bars(others, { label: outside, unit: "logit", format: added }));
}
