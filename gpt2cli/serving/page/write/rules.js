/**
 * The rules of sampling as a person meets them: what each does, who had the idea, what to choose.
 *
 * @typedef {object} Control
 * @property {string} field Of `Settings.sampling`.
 * @property {string} label
 * @property {string} does One sentence.
 * @property {[name: string, address: string] | null} paper
 * @property {number} least Of the slider.
 * @property {number} most
 * @property {number} step
 * @property {number} usual What it is switched on with.
 * @property {boolean} [logarithmic] Whether the slider's steps are ratios.
 * @property {(value: number) => boolean} allowed What the server takes.
 * @property {string} range The same in words.
 * @property {string} [of] The rule that it is a detail of; such a one has no switch.
 */

const ARXIV = "https://arxiv.org/abs/";
const GITHUB = "https://github.com/oobabooga/text-generation-webui/pull/";

/** @param {number} x */
const isShare = (x) => x > 0 && x <= 1;
/** @param {number} x */
const isCount = (x) => Number.isInteger(x) && x >= 1;
/** @param {number} x */
const isPenalty = (x) => x >= -2 && x <= 2;

/** @type {Control[]} */
const FIRST = [
  {
    field: "temperature",
    label: "Temperature",
    does:
      "Divides the logits: below 1 the likely become likelier, above 1 the unlikely do; 0 " +
      "takes the best token always.",
    paper: ["Ackley et al. 1985", "https://doi.org/10.1207/s15516709cog0901_7"],
    least: 0, most: 2, step: 0.01, usual: 0.8,
    allowed: (x) => x >= 0, range: "0 or more",
  },
  {
    field: "top_k",
    label: "Top-k",
    does: "Keeps the k most probable tokens.",
    paper: ["Fan et al. 2018", `${ARXIV}1805.04833`],
    least: 1, most: 1000, step: 1, usual: 40, logarithmic: true,
    allowed: isCount, range: "a whole number from 1",
  },
  {
    field: "top_p",
    label: "Top-p",
    does:
      "Keeps the fewest tokens whose probabilities add up to p: many where much is possible, " +
      "few where the model is sure.",
    paper: ["Holtzman et al. 2019", `${ARXIV}1904.09751`],
    least: 0.01, most: 1, step: 0.01, usual: 0.95,
    allowed: isShare, range: "above 0 and at most 1",
  },
  {
    field: "repetition_penalty",
    label: "Repetition penalty",
    does: "Divides the logits of tokens that are in the text already, or multiplies negative ones.",
    paper: ["Keskar et al. 2019", `${ARXIV}1909.05858`],
    least: 0.8, most: 2, step: 0.01, usual: 1.2,
    allowed: (x) => x > 0, range: "above 0; 1 changes nothing",
  },
];

/** @type {Control[]} */
const FILTERS = [
  {
    field: "min_p",
    label: "Min-p",
    does: "Keeps tokens at least p times as probable as the best one.",
    paper: ["Nguyen et al. 2024", `${ARXIV}2407.01082`],
    least: 0.001, most: 1, step: 0.001, usual: 0.05, logarithmic: true,
    allowed: (x) => x >= 0 && x <= 1, range: "from 0 to 1",
  },
  {
    field: "typical_p",
    label: "Typical-p",
    does:
      "Keeps the tokens that surprise about as much as is to be expected, until they add up " +
      "to p: the very likely may go too.",
    paper: ["Meister et al. 2022", `${ARXIV}2202.00666`],
    least: 0.01, most: 1, step: 0.01, usual: 0.9,
    allowed: isShare, range: "above 0 and at most 1",
  },
  {
    field: "xtc_probability",
    label: "XTC: how often",
    does:
      "At so many tokens, removes all likely ones but the least likely of them: unusual words " +
      "that still fit.",
    paper: ["p-e-w 2024", `${GITHUB}6335`],
    least: 0, most: 1, step: 0.01, usual: 0.5,
    allowed: (x) => x >= 0 && x <= 1, range: "from 0 to 1",
  },
  {
    field: "xtc_threshold",
    label: "XTC: what is likely",
    does: "The probability from which on a token counts as likely.",
    paper: null,
    least: 0.01, most: 0.5, step: 0.01, usual: 0.1, of: "xtc_probability",
    allowed: (x) => x > 0 && x <= 0.5, range: "above 0 and at most 0.5",
  },
  {
    field: "mirostat_tau",
    label: "Mirostat: surprise",
    does:
      "Steers to so many bits of surprise per token by removing what surprises more; takes " +
      "the place of the rules above but temperature.",
    paper: ["Basu et al. 2021", `${ARXIV}2007.14966`],
    least: 0.1, most: 10, step: 0.1, usual: 5,
    allowed: (x) => x > 0, range: "above 0, in bits",
  },
  {
    field: "mirostat_eta",
    label: "Mirostat: pace",
    does: "How fast the limit follows what has been drawn.",
    paper: null,
    least: 0.01, most: 1, step: 0.01, usual: 0.1, of: "mirostat_tau",
    allowed: isShare, range: "above 0 and at most 1",
  },
];

/** @type {Control[]} */
const REPETITION = [
  {
    field: "frequency_penalty",
    label: "Frequency penalty",
    does:
      "Taken from a token's logit each time that the continuation has used it; the text " +
      "before does not count.",
    paper: ["OpenAI's API", "https://platform.openai.com/docs/api-reference/completions"],
    least: -2, most: 2, step: 0.01, usual: 0.5,
    allowed: isPenalty, range: "from −2 to 2; 0 changes nothing",
  },
  {
    field: "presence_penalty",
    label: "Presence penalty",
    does: "Taken once from the logit of every token that the continuation has used.",
    paper: ["OpenAI's API", "https://platform.openai.com/docs/api-reference/completions"],
    least: -2, most: 2, step: 0.01, usual: 0.5,
    allowed: isPenalty, range: "from −2 to 2; 0 changes nothing",
  },
  {
    field: "dry_multiplier",
    label: "DRY: strength",
    does:
      "Penalises the token that would go on with a repetition, the more, the longer that is; " +
      "stops at line ends and quotation marks.",
    paper: ["p-e-w 2024", `${GITHUB}5677`],
    least: 0, most: 2, step: 0.05, usual: 0.8,
    allowed: (x) => x >= 0, range: "0 or more",
  },
  {
    field: "dry_base",
    label: "DRY: growth",
    does: "By how much the penalty grows with each token that is repeated.",
    paper: null,
    least: 1, most: 4, step: 0.05, usual: 1.75, of: "dry_multiplier",
    allowed: (x) => x >= 1, range: "1 or more",
  },
  {
    field: "dry_allowed_length",
    label: "DRY: allowed length",
    does: "Repetitions shorter than this cost nothing.",
    paper: null,
    least: 1, most: 20, step: 1, usual: 2, of: "dry_multiplier",
    allowed: isCount, range: "a whole number from 1",
  },
  {
    field: "no_repeat_ngram",
    label: "No repeated n-gram",
    does: "Bans every token that would complete n tokens that the text has had already.",
    paper: ["Paulus et al. 2017", `${ARXIV}1705.04304`],
    least: 1, most: 20, step: 1, usual: 3,
    allowed: isCount, range: "a whole number from 1",
  },
];

/** The controls in the groups that they are shown in; the first is always open. */
export const GROUPS = [
  { name: "", controls: FIRST },
  { name: "More that choose among the likely", controls: FILTERS },
  { name: "More against repetition", controls: REPETITION },
];

export const CONTROLS = GROUPS.flatMap(({ controls }) => controls);

/** The name of the rule that a field belongs to. @param {string} field */
export function ruleName(field) {
  const label = CONTROLS.find((control) => control.field === field)?.label ?? "bias";
  return label.split(":")[0];
}
