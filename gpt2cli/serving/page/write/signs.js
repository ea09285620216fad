/**
 * A text as the editor shows it: invisible characters and those that turn its direction stand as
 * signs, one for one, so that places in the text stay what they are. A textarea would change some
 * of them (it makes CR a line end) and hide the others.
 */

const UNSEEN = "\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff";
const FIRST_ARROW = 0x21dc;
const CONTROLS = Array.from({ length: 32 }, (_, i) => String.fromCharCode(i)).filter(
  (c) => c !== "\n" && c !== "\t",
);

/** @type {Map<string, string>} */
const SIGNS = new Map([
  ...CONTROLS.map((c) => /** @type {const} */ ([c, String.fromCharCode(0x2400 + c.charCodeAt(0))])),
  ["\u007f", "␡"],
  ...[...UNSEEN].map((c, i) => /** @type {const} */ ([c, String.fromCharCode(FIRST_ARROW + i)])),
]);
const MEANT = new Map([...SIGNS].map(([c, sign]) => [sign, c]));
const HIDDEN = new RegExp(`[${[...SIGNS.keys()].map(escaped).join("")}]`, "g");
const SHOWN = new RegExp(`[${[...MEANT.keys()].map(escaped).join("")}]`, "g");

/** @param {string} text */
export function signed(text) {
  return text.replace(HIDDEN, (c) => /** @type {string} */ (SIGNS.get(c)));
}

/**
 * The characters that signs stand for. A sign is itself where `before`, the text that was there,
 * has no such character: somebody has typed it.
 *
 * @param {string} text
 * @param {string} before
 */
export function unsigned(text, before) {
  return text.replace(SHOWN, (sign) => {
    const c = /** @type {string} */ (MEANT.get(sign));
    return before.includes(c) ? c : sign;
  });
}

/** @param {string} c */
function escaped(c) {
  return `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
}
