/** What the page says about how expected a token or a text was. */

/**
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("../types.js").View} View
 *
 * @typedef {object} Summary
 * @property {number} count Tokens.
 * @property {number} judged Those of which the model has said something; the first has no before.
 * @property {number} bits Their surprisal on average; NaN without any.
 * @property {number} perplexity
 */

/** Where the levels of colour begin; level 0 lies below the first. */
const SURPRISALS = [1, 4, 8, 12]; // bits
const RANKS = [2, 11, 101, 1001];

/** @type {Record<Exclude<View["colour"], "none">, string[]>} What the levels are called. */
export const LEVELS = {
  surprisal: ["under 1 bit", "1–4", "4–8", "8–12", "12 and more"],
  rank: ["the first", "2–10", "11–100", "101–1,000", "beyond"],
};

/** @type {WeakMap<readonly Token[], Summary>} */
const known = new WeakMap();

/** Bits of surprisal, −log₂ p; NaN where nothing is known. @param {Token} token */
export function surprisal({ logprob }) {
  return typeof logprob === "number" ? -logprob / Math.LN2 : NaN;
}

/**
 * The level of a token's surprisal and rank, 0 to 4; null where nothing is known.
 *
 * @param {Token} token
 */
export function levels(token) {
  const bits = surprisal(token);
  if (Number.isNaN(bits)) return null;
  const rank = token.rank ?? 1;
  return {
    surprisal: SURPRISALS.filter((least) => bits >= least).length,
    rank: RANKS.filter((least) => rank >= least).length,
  };
}

/** @param {readonly Token[]} tokens @returns {Summary} */
export function summary(tokens) {
  let found = known.get(tokens);
  if (!found) {
    const all = tokens.map(surprisal).filter((bits) => !Number.isNaN(bits));
    const bits = all.reduce((sum, one) => sum + one, 0) / all.length;
    found = { count: tokens.length, judged: all.length, bits, perplexity: 2 ** bits };
    known.set(tokens, found);
  }
  return found;
}

/** The summary of several stretches together. @param {readonly Summary[]} parts @returns {Summary} */
export function together(parts) {
  const count = parts.reduce((sum, part) => sum + part.count, 0);
  const judged = parts.reduce((sum, part) => sum + part.judged, 0);
  const total = parts.reduce((sum, part) => sum + (part.judged ? part.bits * part.judged : 0), 0);
  return { count, judged, bits: total / judged, perplexity: 2 ** (total / judged) };
}
