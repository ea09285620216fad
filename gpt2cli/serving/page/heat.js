/**
 * Maps of numbers in colours: a table where its cells are few enough to be read, else a picture
 * with a cell to walk with the arrow keys, whose number is told, and a table behind it.
 *
 * @typedef {import("./palette.js").Palette} Palette
 *
 * @typedef {object} Map
 * @property {readonly string[]} rows
 * @property {readonly string[]} columns
 * @property {ArrayLike<number>} values Row by row; NaN is an empty cell.
 * @property {string} label
 * @property {Palette} [palette] Diverging where numbers are below zero.
 * @property {number} [most] The number that has the strongest colour; by default the largest.
 * @property {(value: number) => string} [format]
 * @property {string} [corner] What rows and columns are, such as "layer, head".
 * @property {boolean} [root] Colours grow with the square root, which shows small numbers.
 * @property {number} [chosen] The row to begin at.
 * @property {(row: number, column: number) => void} [onpick]
 *
 * @typedef {Required<Omit<Map, "onpick">> & Pick<Map, "onpick">} Drawing
 */

import { h } from "./dom.js";
import { exact, short } from "./numbers.js";
import { colours, inkOn, painted, step } from "./palette.js";
import { hatch, points, shareOf } from "./raster.js";
import { rove } from "./roving.js";

const READABLE = 400; // cells of a map that is a table
const LISTED = 4096; // cells of a table behind a picture; a larger one shows a row at a time
const NAMED = 64; // rows and columns whose names stand beside a picture
const WIDTH = 960; // points of a picture, about

/** @param {Map} map @returns {HTMLElement} */
export function heatmap(map) {
  const drawing = complete(map);
  const few = drawing.values.length <= READABLE && drawing.columns.length <= 26;
  return h(
    "figure",
    { class: "map" },
    h("figcaption", {}, drawing.label),
    ...(few ? [cells(drawing)] : picture(drawing)),
    legend(drawing),
  );
}

/** @param {Map} map @returns {Drawing} */
function complete(map) {
  let [least, most] = [0, 0];
  for (let i = 0; i < map.values.length; i += 1) {
    const value = map.values[i];
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return {
    palette: least < 0 ? "diverging" : "sequential",
    most: Math.max(-least, most) || 1,
    format: short,
    corner: "",
    root: false,
    chosen: 0,
    ...map,
  };
}

/** @param {Drawing} map @param {number} value */
function colourOf({ most, root, palette }, value) {
  return colours(palette)[step(shareOf(value, most, root, palette))];
}

/** A map whose numbers can be read. @param {Drawing} map */
function cells(map) {
  const table = listing(map, map.rows.map((_, row) => row), (cell, value) => {
    painted(cell, () => {
      const colour = colourOf(map, value);
      cell.style.background = `rgb(${colour})`;
      cell.style.color = inkOn(colour);
    });
  });
  table.classList.add("cells");
  if (map.onpick) rove(table, "td button", map.columns.length);
  const first = table.querySelector("td button");
  if (first instanceof HTMLElement) first.tabIndex = 0;
  const name = { role: "group", "aria-label": map.label, tabindex: map.onpick ? null : 0 };
  return h("div", { class: "scrolled", ...name }, table);
}

/**
 * @param {Drawing} map
 * @param {number[]} rows
 * @param {(cell: HTMLElement, value: number) => void} [paint]
 */
function listing(map, rows, paint) {
  const { columns, values, format, onpick } = map;
  const heads = columns.map((name) => h("th", { scope: "col", class: "number" }, name));
  return h(
    "table",
    {},
    h("caption", { class: "unseen" }, map.label),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, map.corner), ...heads)),
    h(
      "tbody",
      {},
      ...rows.map((row) => h("tr", {}, h("th", { scope: "row" }, map.rows[row]), ...line(row))),
    ),
  );

  /** @param {number} row */
  function line(row) {
    return columns.map((_, column) => {
      const value = values[row * columns.length + column];
      if (Number.isNaN(value)) return h("td", {});
      const title = `${told(map, row, column)}${exact(value)}`;
      const picks = onpick && paint;
      const act = { class: "plain", tabindex: -1, "aria-label": title };
      const shown = picks
        ? h("button", { ...act, onclick: () => onpick(row, column) }, format(value))
        : format(value);
      const cell = h("td", { class: "number", title, "data-value": value }, shown);
      paint?.(cell, value);
      return cell;
    });
  }
}

/** @param {Drawing} map @param {number} row @param {number} column */
function told({ rows, columns }, row, column) {
  return `${rows[row]}, ${columns[column]}: `;
}

/** A map of many cells. @param {Drawing} map @returns {HTMLElement[]} */
function picture(map) {
  const { rows, columns, values, label, onpick } = map;
  const size = Math.max(1, Math.floor(WIDTH / columns.length));
  const point = h("canvas", { width: columns.length, height: rows.length });
  const canvas = h("canvas", { width: columns.length * size, height: rows.length * size });
  canvas.style.setProperty("--columns", String(columns.length));
  const place = h("span", { class: "place" });
  const heard = h("output", {}, "Arrow keys or the pointer tell the numbers.");
  let [row, column] = [Math.min(map.chosen, rows.length - 1), 0];
  const field = h(
    "div",
    {
      class: "field",
      role: "application",
      "aria-roledescription": "map",
      "aria-label": `${label}. Arrow keys tell the numbers.`,
      tabindex: 0,
      onkeydown: walk,
      onfocus: () => show(row, column),
      onpointermove: (/** @type {PointerEvent} */ event) => show(...under(event)),
      onclick: (/** @type {PointerEvent} */ event) => onpick?.(...under(event)),
    },
    canvas,
    place,
  );
  painted(field, () => {
    points(point, values, columns.length, map);
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.imageSmoothingEnabled = false;
    context.drawImage(point, 0, 0, canvas.width, canvas.height);
    if (size >= 6) hatch(context, values, columns.length, size);
  });
  return [named(map, field), heard, behind(map, () => row)];

  /** @param {number} toRow @param {number} toColumn */
  function show(toRow, toColumn) {
    [row, column] = [toRow, toColumn];
    const value = values[row * columns.length + column];
    const number = Number.isNaN(value) ? "nothing" : `${map.format(value)} (${exact(value)})`;
    heard.textContent = told(map, row, column) + number;
    place.style.setProperty("--left", String(column / columns.length));
    place.style.setProperty("--top", String(row / rows.length));
    place.style.setProperty("--width", String(1 / columns.length));
    place.style.setProperty("--height", String(1 / rows.length));
  }

  /** @param {KeyboardEvent} event */
  function walk(event) {
    const [down, right] = STEPS[event.key] ?? [0, 0];
    if (event.key === "Enter") onpick?.(row, column);
    if (!down && !right) return;
    event.preventDefault();
    show(within(row + down, rows.length), within(column + right, columns.length));
  }

  /** @param {PointerEvent} event @returns {[number, number]} */
  function under(event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [
      within(Math.floor(y * rows.length), rows.length),
      within(Math.floor(x * columns.length), columns.length),
    ];
  }
}

/** @type {Record<string, [number, number]>} */
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** @param {number} place @param {number} size */
function within(place, size) {
  return Math.min(Math.max(place, 0), size - 1);
}

/**
 * The picture with the names of its rows and columns, where there is room.
 *
 * @param {Drawing} map
 * @param {HTMLElement} field
 */
function named(map, field) {
  const { rows, columns } = map;
  /** @param {readonly string[]} names */
  const list = (names) => (names.length <= NAMED ? names.map((name) => h("span", {}, name)) : []);
  const box = h(
    "div",
    { class: "named" },
    h("div", { class: "beside", "aria-hidden": "true" }, ...list(rows)),
    field,
    h("div", { class: "under", "aria-hidden": "true" }, ...list(columns)),
  );
  box.style.setProperty("--most", String(Math.max(rows.length, columns.length)));
  return box;
}

/**
 * The table behind a picture, made when it is opened.
 *
 * @param {Drawing} map
 * @param {() => number} row
 */
function behind(map, row) {
  const all = map.values.length <= LISTED;
  const name = all ? "Table" : "Table of the row that the picture tells";
  const box = h("div", { class: "scrolled", role: "group", "aria-label": name, tabindex: 0 });
  return h(
    "details",
    {
      ontoggle: (/** @type {Event} */ event) => {
        const { open } = /** @type {HTMLDetailsElement} */ (event.currentTarget);
        const shown = all ? map.rows.map((_, i) => i) : [row()];
        box.replaceChildren(...(open ? [listing(map, shown)] : []));
      },
    },
    h("summary", {}, name),
    box,
  );
}

/** What the colours mean. @param {Drawing} map */
function legend({ palette, most, format, root }) {
  const least = palette === "diverging" ? -most : 0;
  const scale = h("span", { class: `scale ${palette}`, "aria-hidden": "true" });
  const how = root ? "colours grow with the square root" : "";
  const below = palette === "diverging" ? "below zero: hatched, or with a minus" : "";
  const said = [below, how].filter(Boolean).join("; ");
  const ends = [format(least), format(most), said].map((text) => h("span", {}, text));
  return h("p", { class: "legend soft" }, ends[0], scale, ends[1], ends[2]);
}
