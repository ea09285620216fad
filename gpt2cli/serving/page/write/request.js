/** The fields of a request that settings mean. */

import { choosing } from "../settings.js";

/**
 * @typedef {import("../types.js").Plan} Plan
 * @typedef {import("../types.js").Settings} Settings
 * @typedef {import("../types.js").State} State
 */

/**
 * All fields of a continuation besides its prompt.
 *
 * @param {Pick<State, "settings" | "plan">} state
 * @param {number} seed
 * @returns {Record<string, unknown>}
 */
export function requestOf({ settings, plan }, seed) {
  const { n, max_tokens, stop } = settings;
  return {
    n,
    max_tokens,
    seed,
    ...(stop.length ? { stop } : {}),
    ...choosing(settings),
    ...(isEmpty(plan) ? {} : { plan }),
  };
}

/** Whether a plan changes nothing. @param {Plan} plan */
export function isEmpty({ ablate, steer }) {
  return !ablate.length && !steer.length;
}
