/**
 * The attention of all heads as small maps, a button each, which one stop of the tab key reaches.
 *
 * @typedef {import("./ask.js").Maps} Maps
 */

import { h } from "../dom.js";
import { percent } from "../numbers.js";
import { painted } from "../palette.js";
import { points } from "../raster.js";
import { rove } from "../roving.js";
import { mostFrom } from "./block.js";

const SMOOTH = 48; // points of a side, from which on maps are drawn smaller than they are

export class HeadMaps {
  /**
   * @param {number} layers
   * @param {number} heads
   * @param {(layer: number, head: number) => void} onpick
   */
  constructor(layers, heads, onpick) {
    this._heads = heads;
    /** @type {Maps | null} */
    this._maps = null;
    this._strips = Array.from({ length: layers }, (_, layer) => strip(layer, heads, onpick));
    this._first().tabIndex = 0;
  }

  /** The maps of a layer. @param {number} layer */
  strip(layer) {
    return this._strips[layer];
  }

  /** Let the arrow keys walk among all of them. @param {HTMLElement} container */
  walkIn(container) {
    rove(container, ".tile", this._heads);
  }

  /**
   * Name each head by what it takes most from.
   *
   * @param {number[][][]} rows (L, H, position + 1)
   * @param {{labels: readonly string[], position: number}} scene
   */
  name(rows, { labels, position }) {
    this._each((button, layer, head) => {
      const row = rows[layer][head];
      const from = mostFrom(row);
      const where = from === position ? `itself, ${labels[from]}` : `${from} ${labels[from]}`;
      const name = `head ${layer}.${head}: takes most from ${where} (${percent(row[from])})`;
      button.setAttribute("aria-label", name);
      button.title = name;
    });
    this._mark(position);
    this._position = position;
  }

  /** @param {Maps | null} maps */
  draw(maps) {
    this._maps = maps;
    this._each((button, layer, head) => {
      const canvas = /** @type {HTMLCanvasElement} */ (button.firstChild);
      canvas.classList.toggle("waiting", maps === null);
      if (maps === null) return;
      const { size } = maps;
      canvas.width = size;
      canvas.height = size;
      canvas.classList.toggle("small", size < SMOOTH);
      const from = (layer * this._heads + head) * size * size;
      painted(canvas, () => points(canvas, maps.values, size, { from, root: true }));
    });
    if (this._position !== undefined) this._mark(this._position);
  }

  /** @param {number} layer @param {number} head */
  choose(layer, head) {
    [...this._strips[layer].children].forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === head));
    });
  }

  /** Show which row of each map is looked at. @param {number} position */
  _mark(position) {
    const maps = this._maps;
    const row = maps ? (Math.floor((position - maps.first) / maps.block) + 0.5) / maps.size : -1;
    for (const one of this._strips) one.style.setProperty("--row", String(row));
  }

  /** @param {(button: HTMLElement, layer: number, head: number) => void} act */
  _each(act) {
    this._strips.forEach((one, layer) => {
      [...one.children].forEach((button, head) => {
        act(/** @type {HTMLElement} */ (button), layer, head);
      });
    });
  }

  _first() {
    return /** @type {HTMLElement} */ (this._strips[0].firstChild);
  }
}

/**
 * @param {number} layer
 * @param {number} heads
 * @param {(layer: number, head: number) => void} onpick
 */
function strip(layer, heads, onpick) {
  const buttons = Array.from({ length: heads }, (_, head) =>
    h(
      "button",
      {
        class: "tile",
        tabindex: -1,
        "aria-pressed": "false",
        "data-name": `${layer}.${head}`,
        onclick: () => onpick(layer, head),
      },
      h("canvas", { class: "waiting", width: 1, height: 1 }),
    ),
  );
  const name = `Heads of block ${layer}`;
  return h("div", { class: "tiles", role: "group", "aria-label": name }, ...buttons);
}
