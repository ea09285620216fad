/**
 * Bars with their numbers. The chart is itself a table, so that it can be read without being seen;
 * bars below zero go the other way and are hatched.
 *
 * @typedef {object} Row
 * @property {string | Node} name
 * @property {number} value
 * @property {string} [note] Said of it where the pointer rests.
 * @property {boolean} [current] The one that is looked at.
 * @property {() => void} [onpick] What a click on its name does.
 *
 * @typedef {object} Column
 * @property {string} name
 * @property {string} [unit]
 * @property {(value: number) => string} [format]
 * @property {number} [from] Where the bars begin at the latest; 0 is always part of them.
 * @property {number} [to] Where they end at the earliest.
 *
 * @typedef {Omit<Row, "value"> & {values: readonly (number | string | null)[]}} Line A text stands
 *   in place of a bar; null is nothing.
 */

import { h } from "./dom.js";
import { exact, short } from "./numbers.js";

export { heatmap } from "./heat.js";

/**
 * One bar for each row.
 *
 * @param {readonly Row[]} rows
 * @param {{label: string, unit?: string, first?: string, format?: (value: number) => string,
 *          from?: number, to?: number}} options `first` is the heading of the names.
 */
export function bars(rows, { label, unit = "", first = "part", ...column }) {
  const lines = rows.map(({ value, ...row }) => ({ ...row, values: [value] }));
  return lineUp(lines, { label, first, columns: [{ name: unit || "value", unit, ...column }] });
}

/**
 * Several bars for each row, each column of them with a scale of its own.
 *
 * @param {readonly Line[]} lines
 * @param {{label: string, first: string, columns: readonly Column[]}} options
 * @returns {HTMLElement}
 */
export function lineUp(lines, { label, first, columns }) {
  const scales = columns.map((column, i) => scaled(column, lines, i));
  const heads = columns.map(({ name }) => h("th", { scope: "col", colspan: 2 }, name));
  const table = h(
    "table",
    { class: "bars" },
    h("caption", { class: "unseen" }, label),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, first), ...heads)),
    h("tbody", {}, ...lines.map((line) => row(line, columns, scales))),
  );
  return h("div", { class: "scrolled", role: "group", "aria-label": label, tabindex: 0 }, table);
}

/**
 * @typedef {{least: number, most: number}} Scale
 * @param {Column} column
 * @param {readonly Line[]} lines
 * @param {number} i
 * @returns {Scale}
 */
function scaled({ from = 0, to = 0 }, lines, i) {
  let [least, most] = [Math.min(from, 0), Math.max(to, 0)];
  for (const { values } of lines) {
    const value = values[i];
    if (typeof value !== "number" || !Number.isFinite(value)) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  return { least, most: most === least ? least + 1 : most };
}

/** @param {Line} line @param {readonly Column[]} columns @param {Scale[]} scales */
function row({ name, values, note, current, onpick }, columns, scales) {
  const title = onpick ? h("button", { class: "plain", onclick: onpick }, name) : name;
  const cells = values.flatMap((value, i) => bar(value, columns[i], scales[i]));
  return h(
    "tr",
    { title: note, class: current && "current" },
    h("th", { scope: "row" }, title, current && h("span", { class: "unseen" }, " (chosen)")),
    ...cells,
  );
}

/** @param {number | string | null} value @param {Column} column @param {Scale} scale */
function bar(value, { unit = "", format = short }, { least, most }) {
  if (typeof value !== "number") return [h("td", { colspan: 2, class: "soft" }, value)];
  const kind = value < 0 ? "bar below" : "bar";
  const drawn = h("span", { class: kind });
  const width = most - least;
  drawn.style.setProperty("--start", String((Math.min(value, 0) - least) / width));
  drawn.style.setProperty("--size", String(Math.abs(value) / width));
  const whole = `${exact(value)}${unit && ` ${unit}`}`;
  return [
    h("td", { class: "drawn", "aria-hidden": "true" }, drawn),
    h("td", { class: "number", title: whole, "data-value": value }, format(value)),
  ];
}
