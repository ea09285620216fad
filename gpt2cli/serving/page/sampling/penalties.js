/**
 * What the text so far does to the next token: what each rule adds to the logits of which tokens.
 *
 * The rules of the Python module of the same name. Texts are token ids.
 *
 * @typedef {Map<number, number>} Changes By token id; −∞ bans a token.
 */

const { fround, min } = Math;

const LONGEST_MATCH = 50;

/**
 * The logit of a token that is in the text already. Keskar et al. 2019, arXiv:1909.05858.
 *
 * @param {number} logit
 * @param {number} penalty
 */
export function penalised(logit, penalty) {
  const by = fround(penalty);
  return logit > 0 ? fround(logit / by) : fround(logit * by);
}

/**
 * What OpenAI's penalties take from the tokens that were generated, not from those of the prompt.
 *
 * @param {readonly number[]} generated
 * @param {number} frequency
 * @param {number} presence
 * @returns {Changes}
 */
export function countPenalties(generated, frequency, presence) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const id of generated) counts.set(id, (counts.get(id) ?? 0) + 1);
  return new Map([...counts].map(([id, n]) => [id, -(n * frequency + presence)]));
}

/**
 * A ban of every token that would complete n tokens that were there before.
 *
 * Paulus et al. 2017, arXiv:1705.04304.
 *
 * @param {readonly number[]} ids
 * @param {number} n
 * @returns {Changes}
 */
export function ngramBans(ids, n) {
  const last = ids.length - (n - 1); // where the n-gram that the next token completes begins
  /** @type {Changes} */
  const found = new Map();
  for (let start = 0; start < last; start += 1) {
    let i = 0;
    while (i < n - 1 && ids[start + i] === ids[last + i]) i += 1;
    if (i === n - 1 && start + i < ids.length) found.set(ids[start + i], -Infinity);
  }
  return found;
}

/**
 * DRY: a token loses the more, the longer the sequence is that it would repeat.
 *
 * By p-e-w: github.com/oobabooga/text-generation-webui/pull/5677.
 *
 * @param {readonly number[]} ids
 * @param {{multiplier: number, base: number, allowedLength: number}} settings
 * @param {(id: number) => boolean} isBreaker Whether no match reaches across a token.
 * @returns {Changes}
 */
export function dryPenalties(ids, { multiplier, base, allowedLength }, isBreaker) {
  /** @type {Map<number, number>} */
  const longest = new Map();
  for (let end = 0; end < ids.length - 1; end += 1) {
    const length = matchBefore(ids, end, isBreaker);
    const next = ids[end + 1];
    if (length > (longest.get(next) ?? 0)) longest.set(next, length);
  }
  /** @type {Changes} */
  const found = new Map();
  for (const [id, length] of longest) {
    if (length < allowedLength || isBreaker(id)) continue;
    // Bounded, so that it is told from a ban.
    found.set(id, -min(multiplier * base ** (length - allowedLength), 1e30));
  }
  return found;
}

/**
 * How many tokens up to `end` are the same as the last ones of the text.
 *
 * @param {readonly number[]} ids
 * @param {number} end
 * @param {(id: number) => boolean} isBreaker
 */
function matchBefore(ids, end, isBreaker) {
  const last = ids.length - 1;
  let n = 0;
  while (n < LONGEST_MATCH && end >= n) {
    if (ids[end - n] !== ids[last - n] || isBreaker(ids[last - n])) break;
    n += 1;
  }
  return n;
}
