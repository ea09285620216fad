/** The fields of a request that continues a text. */

import { choosing } from "../settings.js";
import { isEmpty, requested } from "../whatif/plan.js";

/**
 * All fields besides the prompt.
 *
 * @param {Pick<import("../types.js").State, "settings" | "plan">} state
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
    ...(isEmpty(plan) ? {} : { plan: requested(plan) }),
  };
}
