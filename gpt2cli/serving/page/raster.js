/**
 * Numbers as points of a canvas.
 *
 * @typedef {import("./palette.js").Palette} Palette
 */

import { colours, step } from "./palette.js";

/** A dark line with light edges, which is seen on every colour. @type {[number, string][]} */
const HATCH = [
  [3, "rgb(255 255 255 / 60%)"],
  [1, "rgb(0 0 0 / 80%)"],
];

/**
 * Paint numbers into a canvas, a point each.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {ArrayLike<number>} values Row by row.
 * @param {number} columns
 * @param {{from?: number, root?: boolean, most?: number, palette?: Palette}} [options] `from` is
 *   the first of the values that are shown.
 */
export function points(canvas, values, columns, options = {}) {
  const { from = 0, root = false, most = 1, palette = "sequential" } = options;
  const all = colours(palette).map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
  const rows = canvas.height;
  const context = /** @type {CanvasRenderingContext2D} */ (
    canvas.getContext("2d", { willReadFrequently: true })
  );
  const image = context.createImageData(columns, rows);
  const pixels = new Int32Array(image.data.buffer); // little-endian: alpha, blue, green, red
  for (let i = 0; i < columns * rows; i += 1) {
    const value = values[from + i];
    if (Number.isNaN(value)) continue;
    const share = shareOf(value, most, root, palette);
    pixels[i] = all[step(share)];
  }
  context.putImageData(image, 0, 0);
}

/**
 * The place of a number on a palette, from 0 to 1.
 *
 * @param {number} value
 * @param {number} most
 * @param {boolean} root
 * @param {Palette} palette
 */
export function shareOf(value, most, root, palette) {
  const size = Math.min(Math.abs(value) / most, 1);
  const grown = root ? Math.sqrt(size) : size;
  if (palette === "sequential") return value < 0 ? 0 : grown;
  return 0.5 + (Math.sign(value) * grown) / 2;
}

/**
 * Strokes over the cells below zero.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {ArrayLike<number>} values
 * @param {number} columns
 * @param {number} size
 */
export function hatch(context, values, columns, size) {
  const strokes = new Path2D();
  for (let i = 0; i < values.length; i += 1) {
    if (!(values[i] < 0)) continue;
    const [x, y] = [(i % columns) * size, Math.floor(i / columns) * size];
    strokes.moveTo(x, y + size);
    strokes.lineTo(x + size, y);
  }
  for (const [width, colour] of HATCH) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke(strokes);
  }
}
