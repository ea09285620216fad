/**
 * What the panel of candidates shows, from what rules do: computed here, or by the server.
 *
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("../sampling.js").Start} Start
 * @typedef {import("../sampling.js").Stage} Stage
 * @typedef {import("../api.js").Stage} ServerStage
 *
 * @typedef {object} Candidate
 * @property {Named} token
 * @property {number} before The model's own probability.
 * @property {number} after
 * @property {string | null} out The rule that has removed it.
 *
 * @typedef {object} Step
 * @property {string} rule
 * @property {number} candidates
 * @property {boolean} rough Whether that is only about right.
 *
 * @typedef {{candidates: Candidate[], steps: Step[]}} Shown
 */

/**
 * The tokens that are or were most probable, and how many each rule leaves.
 *
 * They stand in the order of the model itself, so that none jumps while a slider moves.
 *
 * @param {Start} start
 * @param {Stage[]} stages
 * @param {number} count
 * @returns {Shown}
 */
export function fromHere({ tokens }, stages, count) {
  const { after: before } = stages[0];
  const { after } = stages[stages.length - 1];
  const chosen = best(before, after, count).sort((a, b) => before[b] - before[a] || a - b);
  const candidates = chosen.map((i) => ({
    token: tokens[i],
    before: before[i],
    after: after[i],
    out: stages.find((stage) => stage.before[i] > 0 && stage.after[i] === 0)?.rule ?? null,
  }));
  return { candidates, steps: stages };
}

/**
 * The same of what the server says of its own best tokens.
 *
 * @param {ServerStage[]} stages
 * @param {number} count
 * @returns {Shown}
 */
export function fromServer(stages, count) {
  const tokens = new Map(stages.flatMap(({ top }) => top.map((token) => [token.id, token])));
  const last = valuesOf(stages[stages.length - 1]);
  const candidates = [...tokens.values()].map((token) => {
    const before = stages[0].top.find(({ id }) => id === token.id)?.after ?? 0;
    const gone = stages.find(({ top }) =>
      top.some((one) => one.id === token.id && one.before > 0 && one.after === 0),
    );
    const after = last.get(token.id)?.after ?? 0;
    return { token, before, after, out: gone?.rule ?? null };
  });
  candidates.sort((a, b) => Math.max(b.before, b.after) - Math.max(a.before, a.after));
  const chosen = candidates.slice(0, count).sort((a, b) => b.before - a.before);
  const steps = stages.map((stage) => ({ ...stage, rough: false }));
  return { candidates: chosen, steps };
}

/** @param {ServerStage} stage */
function valuesOf({ top }) {
  return new Map(top.map((token) => [token.id, token]));
}

/**
 * Where the largest of two lists' numbers are, largest first; among equals the lower places.
 *
 * @param {Float64Array} one
 * @param {Float64Array} other
 * @param {number} count
 */
function best(one, other, count) {
  /** @type {number[]} */
  const found = [];
  /** @param {number} i */
  const value = (i) => Math.max(one[i], other[i]);
  for (let i = 0; i < one.length; i += 1) {
    if (found.length === count && value(i) <= value(found[count - 1])) continue;
    let at = found.length;
    while (at > 0 && value(found[at - 1]) < value(i)) at -= 1;
    found.splice(at, 0, i);
    if (found.length > count) found.pop();
  }
  return found;
}
