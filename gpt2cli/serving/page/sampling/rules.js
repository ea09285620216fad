/**
 * What each rule that looks at nothing but the logits does to the next token's candidates.
 *
 * These are the rules of the Python module of the same name, in the same order of operations and
 * in float32 where that works in it, so that both decide alike. A row is the best tokens one by
 * one, ordered by id, and behind them all others in groups of neighbours in rank.
 *
 * @typedef {object} Row
 * @property {number} singles How many entries are single tokens; those after them are groups.
 * @property {Float32Array} logits Of a group: the mean. −∞ for what is out.
 * @property {Float64Array} counts How many tokens an entry has; 1 or 0 for a single one.
 * @property {Float64Array} spread Variance of the logits within a group.
 * @property {Float64Array} tops The best logit of a group.
 * @property {number[]} order All places, the best of the model first, to sort from.
 * @property {boolean} rough Whether a part of the groups is out: which tokens is not known.
 */

const { exp, fround, log, max, min, abs, round } = Math;

const WHOLE = 2 ** 36; // weight of the best token, as in Python

/** Logits divided by a temperature. @param {Row} row @param {number} temperature @returns {Row} */
export function scaleByTemperature(row, temperature) {
  const best = bestOf(row);
  const by = fround(temperature);
  return {
    ...row,
    logits: row.logits.map((logit) => fround(logit - best) / by),
    spread: row.spread.map((spread) => spread / by ** 2),
    tops: row.tops.map((top) => (top - best) / by),
  };
}

/** Fan et al. 2018, arXiv:1805.04833. @param {Row} row @param {number} k @returns {Row} */
export function keepTopK(row, k) {
  return sharpened(keepBest(row, row.logits, (kept) => k - kept));
}

/** Holtzman et al. 2019, arXiv:1904.09751. @param {Row} row @param {number} p @returns {Row} */
export function keepTopP(row, p) {
  if (p === 1) return row;
  const weights = weigh(row);
  const wanted = p * total(row, weights);
  // A token stays as long as those before it have not reached p.
  return keepBest(row, weights, (_, mass, weight) => Math.ceil((wanted - mass) / weight));
}

/** Nguyen et al. 2024, arXiv:2407.01082. @param {Row} row @param {number} p @returns {Row} */
export function keepMinP(row, p) {
  if (p === 0) return row;
  return keepFrom(row, fround(bestOf(row) + fround(log(p))));
}

/** Meister et al. 2022, arXiv:2202.00666. @param {Row} row @param {number} p @returns {Row} */
export function keepTypical(row, p) {
  if (p === 1) return row;
  const { logits, counts, spread } = row;
  const best = bestOf(row);
  const weights = weigh(row);
  const all = total(row, weights);
  let excess = 0;
  weights.forEach((weight, i) => {
    if (!(weight > 0)) return;
    if (i < row.singles) excess += even(fround(fround(weight) * fround(best - logits[i])));
    else excess += counts[i] * weight * (best - logits[i] - spread[i]);
  });
  const mean = fround(excess / all);
  const distance = logits.map((logit) => abs(fround(fround(best - logit) - mean)));
  const order = sorted(row, (a, b) => distance[a] - distance[b]);
  let mass = 0;
  let last = 0;
  for (const i of order) {
    last = distance[i];
    mass += counts[i] * weights[i];
    if (!(mass < p * all)) break;
  }
  const kept = only(row, (i) => (distance[i] <= last ? counts[i] : 0));
  kept.rough ||= hasGroups(row) && reaches(row, best - mean - last) && !isWhole(row, kept);
  return kept;
}

/**
 * What XTC does when it acts: github.com/oobabooga/text-generation-webui/pull/6335.
 *
 * @param {Row} row
 * @param {number} threshold
 * @returns {Row}
 */
export function excludeTopChoices(row, threshold) {
  const weights = weigh(row);
  const least = threshold * total(row, weights);
  let survivor = -1;
  weights.forEach((weight, i) => {
    // Among equals the highest id counts as the least probable.
    if (weight >= least && (survivor < 0 || weight <= weights[survivor])) survivor = i;
  });
  if (survivor < 0) return row;
  return only(row, (i) => (weights[i] >= least && i !== survivor ? 0 : row.counts[i]));
}

/**
 * The first step of mirostat 2: Basu et al. 2021, arXiv:2007.14966, algorithm 2.
 *
 * @param {Row} row
 * @param {number} limit In bits.
 * @returns {Row}
 */
export function keepSurprise(row, limit) {
  const best = bestOf(row);
  const sum = fround(log(total(row, weigh(row)) / WHOLE));
  /** @param {number} logit */
  const bits = (logit) => fround(-fround(fround(logit - best) - sum) / fround(Math.LN2));
  const most = max(limit, bits(best));
  const kept = only(row, (i) => (bits(row.logits[i]) <= most ? row.counts[i] : 0));
  return judged(row, kept, best + sum - most * Math.LN2);
}

/** Probabilities of the single tokens, and how many tokens have any. @param {Row} row */
export function probabilities(row) {
  const best = bestOf(row);
  const values = new Float64Array(row.logits.length);
  if (best === -Infinity) return { values: values.subarray(0, row.singles), candidates: 0 };
  for (let i = 0; i < values.length; i += 1) {
    values[i] = exp(row.logits[i] - best + row.spread[i] / 2);
  }
  const sum = total(row, values);
  let candidates = 0;
  for (let i = 0; i < values.length; i += 1) {
    values[i] /= sum;
    if (values[i] > 0) candidates += row.counts[i];
  }
  return { values: values.subarray(0, row.singles), candidates };
}

/**
 * Weights as probabilities: whole numbers for single tokens, the mean of each group.
 *
 * @param {Row} row
 */
function weigh(row) {
  const { logits, singles, spread } = row;
  const best = bestOf(row);
  const weights = new Float64Array(logits.length);
  for (let i = 0; i < weights.length; i += 1) {
    weights[i] =
      i < singles
        ? even(fround(exp(fround(logits[i] - best))) * WHOLE)
        : exp(logits[i] - best + spread[i] / 2) * WHOLE;
  }
  return weights;
}

/** @param {Row} row @param {Float64Array} weights */
function total({ counts }, weights) {
  let sum = 0;
  for (let i = 0; i < counts.length; i += 1) if (counts[i]) sum += counts[i] * weights[i];
  return sum;
}

/** Rounded, halves to even numbers. @param {number} x */
function even(x) {
  const up = round(x);
  return up - x === 0.5 && up % 2 !== 0 ? up - 1 : up;
}

/** @param {Row} row */
function bestOf({ logits }) {
  let best = -Infinity;
  for (let i = 0; i < logits.length; i += 1) if (logits[i] > best) best = logits[i];
  return best;
}

/**
 * Keep the best entries: as many tokens of each as `room` says, until it says none.
 *
 * @param {Row} row
 * @param {Float32Array | Float64Array} values
 * @param {(kept: number, mass: number, value: number) => number} room
 */
function keepBest(row, values, room) {
  const kept = new Float64Array(row.counts.length);
  let tokens = 0;
  let mass = 0;
  let edge = Infinity;
  for (const i of sorted(row, (a, b) => values[b] - values[a] || a - b)) {
    const here = min(row.counts[i], room(tokens, mass, values[i]));
    if (!(here > 0)) break;
    kept[i] = here;
    edge = row.logits[i];
    tokens += here;
    mass += row.counts[i] * values[i];
  }
  return judged(row, only(row, (i) => kept[i]), edge);
}

/** Keep what has at least some logit. @param {Row} row @param {number} least */
function keepFrom(row, least) {
  const kept = only(row, (i) => (row.logits[i] >= least ? row.counts[i] : 0));
  return sharpened(judged(row, kept, least));
}

/**
 * Say whether a rule that keeps all from some logit on has kept a part of the groups.
 *
 * @param {Row} row
 * @param {Row} kept
 * @param {number} edge
 */
function judged(row, kept, edge) {
  kept.rough ||= hasGroups(row) && reaches(row, edge) && !isWhole(row, kept);
  return kept;
}

/**
 * After a rule that depends on no sum: known again once nothing of the groups is left.
 *
 * @param {Row} row
 */
function sharpened(row) {
  row.rough &&= hasGroups(row);
  return row;
}

/** @param {Row} row @param {(i: number) => number} count @returns {Row} */
function only(row, count) {
  const logits = row.logits.slice();
  const counts = row.counts.slice();
  for (let i = 0; i < counts.length; i += 1) {
    counts[i] = count(i);
    if (!(counts[i] > 0)) logits[i] = -Infinity;
  }
  return { ...row, counts, logits };
}

/**
 * Whether a token of a group may have a logit of `edge` or more.
 *
 * @param {Row} row
 * @param {number} edge
 */
function reaches({ tops, counts, singles }, edge) {
  return tops.some((top, i) => i >= singles && counts[i] > 0 && top >= edge);
}

/** @param {Row} row */
function hasGroups({ counts, singles }) {
  return counts.subarray(singles).some((count) => count > 0);
}

/** Whether no token of the groups has gone. @param {Row} row @param {Row} kept */
function isWhole({ counts, singles }, kept) {
  return counts.every((count, i) => i < singles || count === kept.counts[i]);
}

/** @param {Row} row @param {(a: number, b: number) => number} compare */
function sorted({ order }, compare) {
  // An array's sort is fast where most is in order; that of a typed array is not.
  return order.slice().sort(compare);
}
