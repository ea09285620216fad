/**
 * What each rule of sampling does to the next token's candidates, as the server's sampler says.
 *
 * Pure functions of logits that the page holds: nothing is asked while a slider moves. The best
 * tokens are known one by one, with those of the text, which rules on the past change; of all
 * others, groups of neighbours in rank.
 *
 * @typedef {import("./types.js").Named} Named
 * @typedef {import("./api.js").Candidates} Candidates
 * @typedef {import("./sampling/rules.js").Row} Row
 * @typedef {import("./sampling/penalties.js").Changes} Changes
 *
 * @typedef {object} Start The candidates before any rule.
 * @property {readonly Named[]} tokens Those known one by one, by id.
 * @property {ReadonlyMap<number, number>} places Where each id is among them.
 * @property {Row} row
 *
 * @typedef {object} Text
 * @property {readonly Named[]} tokens
 * @property {number} promptLength How many of them the model has not generated in this run.
 *
 * @typedef {object} Stage What one rule does.
 * @property {string} rule As the server names it.
 * @property {string} field Its setting; empty for the model itself.
 * @property {number} candidates Tokens left.
 * @property {boolean} rough Whether that is only about right: some of the groups have gone.
 * @property {Float64Array} before Probabilities of `Start.tokens`.
 * @property {Float64Array} after
 *
 * @typedef {Record<string, number | null>} Sampling Settings by their names; null is off.
 *
 * @typedef {object} Rule
 * @property {string} rule
 * @property {string} field
 * @property {(row: Row) => Row} apply
 */

import { countPenalties, dryPenalties, ngramBans, penalised } from "./sampling/penalties.js";
import {
  excludeTopChoices,
  keepMinP,
  keepSurprise,
  keepTopK,
  keepTopP,
  keepTypical,
  probabilities,
  scaleByTemperature,
} from "./sampling/rules.js";

const BREAKERS = ["\n", ":", '"', "*"]; // the server's
const DEFAULTS = { dry_base: 1.75, dry_allowed_length: 2, xtc_threshold: 0.1 };

/** Filters of the logits, in the server's order; mirostat takes the place of them all. */
const FILTERS = /** @type {const} */ ([
  ["top_k", "top-k", keepTopK],
  ["top_p", "top-p", keepTopP],
  ["min_p", "min-p", keepMinP],
  ["typical_p", "typical-p", keepTypical],
]);

/** What the rules begin with. @param {Candidates} next @returns {Start} */
export function begin(next) {
  const tokens = [...next.candidates, ...next.text].sort((a, b) => a.id - b.id);
  const { counts, means, masses, tops } = next.rest;
  const none = tokens.map(() => 0);
  const logits = Float32Array.from([...tokens.map(({ logit }) => logit), ...means]);
  return {
    tokens,
    places: new Map(tokens.map(({ id }, i) => [id, i])),
    row: {
      singles: tokens.length,
      logits,
      counts: Float64Array.from([...tokens.map(() => 1), ...counts]),
      spread: Float64Array.from([
        ...none,
        ...masses.map((mass, i) => 2 * (mass - Math.log(counts[i]) - Math.fround(means[i]))),
      ]),
      tops: Float64Array.from([...none, ...tops]),
      order: [...logits.keys()].sort((a, b) => logits[b] - logits[a] || a - b),
      rough: false,
    },
  };
}

/**
 * What each rule does, the model's own candidates first.
 *
 * XTC is shown as if it acted, and mirostat as in the first step of a text. At temperature 0 the
 * best of what the text's rules leave is taken.
 *
 * @param {Start} start
 * @param {Sampling} sampling
 * @param {Text} text
 * @param {Changes} [bias]
 * @returns {Stage[]}
 */
export function explain(start, sampling, text, bias = new Map()) {
  let { row } = start;
  let found = probabilities(row);
  const model = { rule: "the model", field: "", before: found.values, after: found.values };
  const stages = [{ ...model, candidates: found.candidates, rough: false }];
  for (const { rule, field, apply } of rulesOf(start, sampling, text, bias)) {
    const before = found.values;
    row = apply(row);
    found = probabilities(row);
    const { values: after, candidates } = found;
    stages.push({ rule, field, candidates, rough: row.rough, before, after });
  }
  return stages;
}

/**
 * The rules that are on, in their order.
 *
 * @param {Start} start
 * @param {Sampling} sampling
 * @param {Text} text
 * @param {Changes} bias
 */
function rulesOf(start, sampling, text, bias) {
  return [...historyRules(start, sampling, text, bias), ...rulesOfLogits(sampling)];
}

/**
 * @param {Start} start
 * @param {Sampling} sampling
 * @param {Text} text
 * @param {Changes} bias
 * @returns {Rule[]}
 */
function historyRules(start, sampling, text, bias) {
  const ids = text.tokens.map(({ id }) => id);
  const { repetition_penalty: repetition = null, no_repeat_ngram: n = null } = sampling;
  const [frequency, presence] = [sampling.frequency_penalty || 0, sampling.presence_penalty || 0];
  const multiplier = sampling.dry_multiplier || 0;
  /** @param {string} rule @param {string} field @param {() => Changes} changes @returns {Rule} */
  const adding = (rule, field, changes) => ({
    rule,
    field,
    apply: (row) => added(row, start.places, changes()),
  });
  const generated = ids.slice(text.promptLength);
  /** @type {(Rule | false)[]} */
  const rules = [
    bias.size > 0 && adding("bias", "logit_bias", () => bias),
    repetition !== null && {
      rule: `repetition penalty ${g(repetition)}`,
      field: "repetition_penalty",
      apply: (row) => changed(row, start.places, ids, (x) => penalised(x, repetition)),
    },
    (frequency !== 0 || presence !== 0) &&
      adding(
        `frequency ${g(frequency)}, presence ${g(presence)}`,
        frequency ? "frequency_penalty" : "presence_penalty",
        () => countPenalties(generated, frequency, presence),
      ),
    multiplier !== 0 &&
      adding(`DRY ${g(multiplier)}`, "dry_multiplier", () => dry(start, sampling, text)),
    n !== null && adding(`no repeated ${g(n)}-gram`, "no_repeat_ngram", () => ngramBans(ids, n)),
  ];
  return rules.filter((rule) => rule !== false);
}

/** @param {Sampling} sampling @returns {Rule[]} */
function rulesOfLogits(sampling) {
  const { temperature: given, xtc_probability, mirostat_tau: tau = null } = sampling;
  const temperature = given ?? 1;
  if (temperature === 0) return [];
  /** @type {Rule[]} */
  const rules = [
    {
      rule: `temperature ${g(temperature)}`,
      field: "temperature",
      apply: (row) => scaleByTemperature(row, temperature),
    },
  ];
  for (const [field, name, keep] of FILTERS) {
    const value = sampling[field] ?? null;
    if (value === null) continue;
    rules.push({ rule: `${name} ${g(value)}`, field, apply: (row) => keep(row, value) });
  }
  if (xtc_probability) {
    const threshold = sampling.xtc_threshold ?? DEFAULTS.xtc_threshold;
    const apply = /** @param {Row} row */ (row) => excludeTopChoices(row, threshold);
    rules.push({ rule: `XTC ${g(threshold)}`, field: "xtc_probability", apply });
  }
  if (tau !== null) {
    const apply = /** @param {Row} row */ (row) => keepSurprise(row, 2 * tau);
    rules.push({ rule: `mirostat ${g(tau)}`, field: "mirostat_tau", apply });
  }
  return rules;
}

/** @param {Start} start @param {Sampling} sampling @param {Text} text */
function dry(start, sampling, { tokens }) {
  const said = new Map([...start.tokens, ...tokens].map((token) => [token.id, token.text]));
  const settings = {
    multiplier: sampling.dry_multiplier ?? 0,
    base: sampling.dry_base ?? DEFAULTS.dry_base,
    allowedLength: sampling.dry_allowed_length ?? DEFAULTS.dry_allowed_length,
  };
  const ids = tokens.map(({ id }) => id);
  return dryPenalties(ids, settings, (id) => BREAKERS.some((b) => said.get(id)?.includes(b)));
}

/** @param {Row} row @param {ReadonlyMap<number, number>} places @param {Changes} changes */
function added(row, places, changes) {
  const amounts = [...changes.values()].map(Math.fround);
  const ids = [...changes.keys()];
  return changed(row, places, ids, (logit, k) => Math.fround(logit + amounts[k]));
}

/**
 * The row with other logits of some tokens, each changed once.
 *
 * @param {Row} row
 * @param {ReadonlyMap<number, number>} places
 * @param {readonly number[]} ids
 * @param {(logit: number, k: number) => number} change
 * @returns {Row}
 */
function changed(row, places, ids, change) {
  const logits = row.logits.slice();
  const counts = row.counts.slice();
  let { rough } = row;
  ids.forEach((id, k) => {
    const i = places.get(id);
    if (i === undefined) {
      rough ||= row.counts.length > row.singles; // of a group, and which is not known
      return;
    }
    logits[i] = change(row.logits[i], k);
    counts[i] = logits[i] === -Infinity ? 0 : 1;
  });
  return { ...row, logits, counts, rough };
}

/** A number as Python's format `g` writes it. @param {number} value */
export function g(value) {
  if (value === 0) return "0";
  const [digits, power] = value.toExponential(5).split("e");
  const exponent = Number(power);
  if (exponent >= -4 && exponent < 6) return String(Number(value.toPrecision(6)));
  const sign = exponent < 0 ? "-" : "+";
  return `${Number(digits)}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
}
