/**
 * Branches of a text: pure functions, each of which leaves its tree as it was and gives another.
 *
 * @typedef {import("./types.js").Branch} Branch
 * @typedef {import("./types.js").Token} Token
 * @typedef {import("./types.js").Tree} Tree
 */

/** A tree with an empty text. @returns {Tree} */
export function emptyTree() {
  const id = newId();
  const root = { id, parent: null, tokens: [], name: "", origin: null };
  return { branches: { [id]: root }, leaf: id };
}

/** The branches from the root to the leaf that is shown. @param {Tree} tree @returns {Branch[]} */
export function path({ branches, leaf }) {
  const found = [];
  for (let id = /** @type {string | null} */ (leaf); id !== null; id = branches[id].parent) {
    found.unshift(branches[id]);
  }
  return found;
}

/** The tokens of the text that is shown. @param {Tree} tree @returns {Token[]} */
export function tokensOf(tree) {
  return path(tree).flatMap((branch) => branch.tokens);
}

function newId() {
  return crypto.randomUUID();
}
