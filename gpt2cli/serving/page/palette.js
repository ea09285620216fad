/**
 * Colours of charts, from the style sheet, so that they follow light and dark. Sequential ones grow
 * steadily darker (or lighter, in the dark), so that they can be told apart without hue; of the
 * diverging ones those below zero are hatched as well.
 *
 * @typedef {"sequential" | "diverging"} Palette
 * @typedef {readonly [number, number, number]} Colour
 */

const STOPS = {
  sequential: ["--map-0", "--map-1", "--map-2", "--map-3"],
  diverging: ["--map-below-2", "--map-below-1", "--map-0", "--map-1", "--map-2"],
};
const STEPS = 256;

/** @type {Map<Palette, Colour[]>} */
const known = new Map();
/** @type {WeakMap<Element, () => void>} */
const painters = new WeakMap();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  known.clear();
  for (const element of document.querySelectorAll("[data-painted]")) painters.get(element)?.();
});

/**
 * Paint an element now, and again whenever the colours change.
 *
 * @param {HTMLElement} element
 * @param {() => void} paint
 */
export function painted(element, paint) {
  element.dataset.painted = "";
  painters.set(element, paint);
  paint();
}

/** All colours of a palette, from its least to its most. @param {Palette} palette */
export function colours(palette) {
  let found = known.get(palette);
  if (!found) {
    found = between(STOPS[palette].map(resolved));
    known.set(palette, found);
  }
  return found;
}

/** Which of the colours a share of 0 to 1 has. @param {number} share */
export function step(share) {
  return Math.round(Math.min(Math.max(share, 0), 1) * (STEPS - 1));
}

/** Black or white, whichever can be read on a colour. @param {Colour} colour */
export function inkOn([r, g, b]) {
  const [x, y, z] = [r, g, b].map((c) => {
    const part = c / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "#000" : "#fff";
}

/** @param {Colour[]} stops @returns {Colour[]} */
function between(stops) {
  return Array.from({ length: STEPS }, (_, i) => {
    const place = (i / (STEPS - 1)) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const [a, b] = [stops[first], stops[first + 1]];
    const mixed = a.map((c, j) => Math.round(c + (b[j] - c) * (place - first)));
    return /** @type {[number, number, number]} */ (mixed);
  });
}

/** The value of a colour of the style sheet as it is now. @param {string} name @returns {Colour} */
function resolved(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const parts = getComputedStyle(probe).color.match(/[\d.]+/g) ?? [];
  probe.remove();
  return /** @type {[number, number, number]} */ (parts.slice(0, 3).map(Number));
}
