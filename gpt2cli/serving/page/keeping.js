/** What the browser keeps: the state of the page, in its storage or in the fragment of a link. */

import { emptyTree } from "./tree.js";

/**
 * @typedef {import("./types.js").Model} Model
 * @typedef {import("./types.js").State} State
 */

/** The state to begin with. @param {Model} model @returns {Promise<State>} */
export async function beginning(model) {
  return {
    tree: emptyTree(),
    settings: {
      n: 1,
      max_tokens: 60,
      seed: null,
      stop: [],
      sampling: { ...model.sampling },
      constraint: null,
    },
    plan: { ablate: [], ablate_with: "zero", reference: null, steer: [] },
    view: { room: "write", token: null, colour: "surprisal", boundaries: false },
  };
}

/**
 * Keep the state whenever it changes.
 *
 * @param {import("./state.js").Store} store
 * @param {Model} model
 */
export function keep(store, model) {}
