/** The fields of a request that settings mean. */

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
    ...samplingOf(settings),
    ...(isEmpty(plan) ? {} : { plan }),
  };
}

/**
 * The rules of sampling and the constraint; null switches a rule off.
 *
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 */
export function samplingOf({ sampling, constraint }) {
  return { ...sampling, ...(constraint ? constrained(constraint) : {}) };
}

/** @param {NonNullable<Settings["constraint"]>} constraint */
function constrained({ kind, value }) {
  if (kind !== "choice") return { [kind]: value };
  return { choice: value.split("\n").filter((line) => line) };
}

/** Whether a plan changes nothing. @param {Plan} plan */
export function isEmpty({ ablate, steer }) {
  return !ablate.length && !steer.length;
}
