/** The fields of a request that continues a text. */

import { choosing } from "../settings.js";
import { isEmpty, requested } from "../plan.js";

const SEEDS = 2 ** 31;

/**
 * All fields besides the prompt, with a new seed where none is set.
 *
 * @param {Pick<import("../types.js").State, "settings" | "plan">} state
 * @returns {Record<string, unknown> & {seed: number}}
 */
export function requestOf({ settings, plan }) {
  const { n, max_tokens, stop } = settings;
  return {
    n,
    max_tokens,
    seed: settings.seed ?? Math.floor(Math.random() * SEEDS),
    ...(stop.length ? { stop } : {}),
    ...choosing(settings),
    ...(isEmpty(plan) ? {} : { plan: requested(plan) }),
  };
}
