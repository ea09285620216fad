/**
 * The settings of the page as fields of a request.
 *
 * @typedef {import("./types.js").Settings} Settings
 */

/** What mirostat takes the place of; the server refuses both together. */
export const NOT_WITH_MIROSTAT = ["top_k", "top_p", "min_p", "typical_p", "xtc_probability"];

/**
 * The rules of sampling and the constraint; null switches a rule off.
 *
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 */
export function choosing({ sampling, constraint }) {
  return { ...sampling, ...constrained(constraint) };
}

/**
 * The texts of a list that is written one to a line, where `\n` in a text is a line's end.
 *
 * @param {string} text
 */
export function linesOf(text) {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) =>
    line.replace(/\\([nt\\])/g, (_, c) => ({ n: "\n", t: "\t" })[/** @type {string} */ (c)] ?? c),
  );
}

/** The list that `linesOf` reads. @param {readonly string[]} texts */
export function toLines(texts) {
  const signs = /** @type {Record<string, string>} */ ({ "\n": "\\n", "\t": "\\t", "\\": "\\\\" });
  return texts.map((text) => text.replace(/[\n\t\\]/g, (c) => signs[c])).join("\n");
}

/** @param {Settings["constraint"]} constraint */
function constrained(constraint) {
  if (constraint === null || constraint.value === "") return {};
  const { kind, value } = constraint;
  return { [kind]: kind === "choice" ? linesOf(value) : value };
}
