/** The text that is changed: as many of its last tokens as the model reads. */

import { tokensOf } from "../tree.js";

/**
 * Its tokens; positions count from the first of them.
 *
 * @param {import("../types.js").Tree} tree
 * @param {import("../types.js").Model} model
 */
export function readOf(tree, model) {
  return tokensOf(tree).slice(-model.config.context_length);
}
