/**
 * What each step of the model is, in a sentence, with its formula and the paper it is from.
 *
 * @typedef {object} Lesson
 * @property {string} text
 * @property {string} [formula]
 * @property {readonly (readonly [name: string, link: string])[]} papers
 */

import { h } from "../dom.js";

const VASWANI = /** @type {const} */ (["Vaswani et al. 2017", "https://arxiv.org/abs/1706.03762"]);
const BA = /** @type {const} */ (["Ba et al. 2016", "https://arxiv.org/abs/1607.06450"]);
const XIONG = /** @type {const} */ (["Xiong et al. 2020", "https://arxiv.org/abs/2002.04745"]);
const GEVA = /** @type {const} */ (["Geva et al. 2021", "https://arxiv.org/abs/2012.14913"]);
const ELHAGE = /** @type {const} */ ([
  "Elhage et al. 2021",
  "https://transformer-circuits.pub/2021/framework/index.html",
]);
const RADFORD = /** @type {const} */ ([
  "Radford et al. 2019",
  "https://cdn.openai.com/better-language-models/" +
    "language_models_are_unsupervised_multitask_learners.pdf",
]);
const LENS = /** @type {const} */ ([
  "nostalgebraist 2020",
  "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
]);

/** @type {Record<string, Lesson>} */
const LESSONS = {
  way: {
    text:
      "One vector, the residual stream, runs through the model: each block reads it and adds to " +
      "it, nothing is overwritten. The line at the left is as wide as that vector is long. " +
      "Open a row or a head to see what happens there.",
    papers: [ELHAGE],
  },
  embedding: {
    text:
      "The token has a learned vector, and so has its position; their sum is where the stream " +
      "begins.",
    formula: "x₀ = E[token] + P[position]",
    papers: [RADFORD],
  },
  norm: {
    text:
      "Layer norm takes away the mean μ of the vector's numbers and divides by their standard " +
      "deviation σ, so that what comes next reads numbers of one size; then it scales and " +
      "shifts each of them by a learned γ and β.",
    formula: "y = γ · (x − μ) / √(σ² + ε) + β,   ε = 10⁻⁵",
    papers: [BA],
  },
  prenorm: {
    text:
      "GPT-2 normalises what attention reads, not the stream itself, which passes unchanged: " +
      "deep models learn more steadily so.",
    papers: [XIONG],
  },
  heads: {
    text:
      "Each head lets some of what it reads at other tokens flow to this one, and writes that to " +
      "the stream. All heads of a block work side by side.",
    papers: [VASWANI],
  },
  head: {
    text:
      "The query q of this token meets the key k of every token: a score. The mask hides later " +
      "tokens, softmax turns the other scores into weights that sum to 1, and so much of each " +
      "token's value v flows here.",
    formula: "softmax(q·k / √D + mask) · v",
    papers: [VASWANI],
  },
  mlp: {
    text:
      "Each neuron compares what it reads with a pattern, its key, and adds its value, a vector " +
      "of its own, as strongly as that fits.",
    formula: "W₂ · GELU(W₁ · y + b₁) + b₂",
    papers: [GEVA],
  },
  lens: {
    text:
      "What the model would say next if it stopped here: the stream goes straight to the final " +
      "norm and the output.",
    papers: [LENS],
  },
  output: {
    text:
      "The normalised vector is multiplied with the embedding of every token, which gives a " +
      "logit each; softmax turns logits into probabilities.",
    formula: "p = softmax(E · y)",
    papers: [RADFORD],
  },
  parts: {
    text:
      "With the final norm's σ as it is, a logit is a plain sum over all that was written to " +
      "the stream. These are direct effects: what a part does by way of later parts is " +
      "counted as theirs.",
    papers: [ELHAGE],
  },
};

/** A lesson as a paragraph. @param {keyof typeof LESSONS} name */
export function lesson(name) {
  const { text, formula, papers } = LESSONS[name];
  const links = papers.map(([paper, href]) =>
    h("a", { href, target: "_blank", rel: "noreferrer" }, paper),
  );
  const shown = formula && h("span", { class: "formula" }, formula);
  return h("p", { class: "lesson" }, text, " ", ...links, shown);
}
