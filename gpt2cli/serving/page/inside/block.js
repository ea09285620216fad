/**
 * A row of the picture opened: what happens in a block, step by step.
 *
 * @typedef {import("./ask.js").Inspection} Inspection
 * @typedef {import("./ask.js").Head} Head
 *
 * @typedef {object} Scene All that is known of the token that is looked at.
 * @property {Inspection} found
 * @property {number} position
 * @property {readonly string[]} labels Of all tokens of the text.
 * @property {(layer: number, head: number) => Promise<Head>} ask
 */

import { bars, lineUp } from "../charts.js";
import { h } from "../dom.js";
import { added, percent } from "../numbers.js";
import { visible } from "../tokens.js";
import { headParts } from "./head.js";
import { lesson } from "./lessons.js";
import { normTable } from "./norm.js";
import { taken } from "./parts.js";

/** @param {Scene} scene */
export function embeddingSteps({ found, position, labels }) {
  const { token, position: place } = found.embedding;
  const rows = [
    { name: `token ${labels[position]}`, value: token },
    { name: `position ${position}`, value: place },
    { name: "their sum, x₀", value: found.activations.stream[0][0] },
  ];
  const label = "Lengths of the embeddings";
  return [
    step(
      "Token and position become a vector",
      lesson("embedding"),
      bars(rows, { label, unit: "length" }),
    ),
    step("If the model stopped here: the logit lens", lesson("lens"), lensBars(found, 0)),
  ];
}

/**
 * @param {Scene} scene
 * @param {number} layer
 * @param {{head: number | undefined, onhead: (head: number) => void}} heads
 */
export function blockSteps(scene, layer, heads) {
  const { found } = scene;
  const { attention, feed_forward, stream } = found.activations;
  const lengths = [
    { name: "stream into the block", value: stream[layer][0] },
    { name: "attention adds", value: attention[layer][0] },
    { name: "MLP adds", value: feed_forward[layer][0] },
    { name: "stream out of it", value: stream[layer + 1][0] },
  ];
  return [
    step(
      "1 · Layer norm before attention",
      lesson("norm"),
      normTable(found.norms, 2 * layer, `Layer norm before attention ${layer}`),
      lesson("prenorm"),
    ),
    step(
      "2 · Attention",
      lesson("heads"),
      headList(scene, layer, heads),
      opened(scene, layer, heads),
    ),
    step(
      "3 · Layer norm before the MLP",
      normTable(found.norms, 2 * layer + 1, `Layer norm before MLP ${layer}`),
    ),
    step("4 · MLP: the strongest neurons", lesson("mlp"), neurons(found, layer)),
    step(
      "5 · The stream goes on",
      bars(lengths, { label: `Lengths of vectors in block ${layer}`, unit: "length" }),
    ),
    step("If the model stopped here: the logit lens", lesson("lens"), lensBars(found, layer + 1)),
  ];
}

/** @param {Scene} scene */
export function outputSteps({ found }) {
  const last = found.norms.mean_in.length - 1;
  const lines = found.next.map(({ id, text, logit, probability, rank }) => ({
    name: visible(text),
    values: [logit, probability],
    note: `rank ${rank}`,
    current: id === found.target.id,
  }));
  const columns = [{ name: "logit" }, { name: "probability", format: percent, to: 1 }];
  const label = "The most probable next tokens";
  return [
    step("Final layer norm", lesson("norm"), normTable(found.norms, last, "Final layer norm")),
    step(
      "Logits and probabilities",
      lesson("output"),
      lineUp(lines, { label, first: "token", columns }),
    ),
  ];
}

/** The token that a head takes most from. @param {readonly number[]} row */
export function mostFrom(row) {
  let best = 0;
  row.forEach((value, i) => {
    if (value > row[best]) best = i;
  });
  return best;
}

/** @param {string} title @param {...(Node | null)} parts */
function step(title, ...parts) {
  return h("section", { class: "step" }, h("h3", {}, title), ...parts);
}

/**
 * All heads of a block: where each looks most, and what it adds to the logit.
 *
 * @param {Scene} scene
 * @param {number} layer
 * @param {{head: number | undefined, onhead: (head: number) => void}} heads
 */
function headList({ found, labels }, layer, { head: chosen, onhead }) {
  const { contributions, versus } = found;
  const adds = (/** @type {number} */ head) =>
    contributions.heads[layer][head] - (versus ? versus.heads[layer][head] : 0);
  const lines = found.attention_row[layer].map((row, head) => {
    const from = mostFrom(row);
    return {
      name: `head ${layer}.${head}`,
      values: [`${from} ${labels[from]}`, row[from], adds(head)],
      current: head === chosen,
      onpick: () => onhead(head),
    };
  });
  return lineUp(lines, {
    label: `Heads of block ${layer}`,
    first: "head",
    columns: [
      { name: "takes most from" },
      { name: "weight", format: percent, to: 1 },
      { name: `adds to ${taken(found)}`, format: added },
    ],
  });
}

/**
 * @param {Scene} scene
 * @param {number} layer
 * @param {{head: number | undefined}} heads
 */
function opened({ ask, labels, position }, layer, { head }) {
  if (head === undefined) return null;
  const body = h("div", { "aria-busy": "true" }, "…");
  const title = h("h4", { tabindex: -1 }, `Head ${layer}.${head}`);
  ask(layer, head).then(
    (found) => {
      body.replaceChildren(...headParts(found, { layer, head, position }, labels));
      body.removeAttribute("aria-busy");
    },
    (error) => {
      if (error.name === "AbortError") return;
      body.removeAttribute("aria-busy");
      body.replaceChildren(h("p", { class: "bad" }, error.message));
    },
  );
  return h("div", { class: "opened", "data-head": `${layer}.${head}` }, title, body);
}

/** @param {Inspection} found @param {number} layer */
function neurons(found, layer) {
  const lines = found.neurons[layer].map(({ index, activation, logit, versus = 0 }) => ({
    name: `neuron ${index}`,
    values: [activation, logit - versus],
  }));
  const columns = [
    { name: "activation after GELU" },
    { name: `adds to ${taken(found)}`, format: added },
  ];
  return lineUp(lines, { label: `Strongest neurons of MLP ${layer}`, first: "neuron", columns });
}

/** @param {Inspection} found @param {number} index */
function lensBars({ lens, target }, index) {
  const last = /** @type {string[]} */ (lens.texts[index].at(-1));
  const shares = /** @type {number[]} */ (lens.probabilities[index].at(-1));
  const rows = last.map((text, i) => ({ name: visible(text), value: shares[i] }));
  const own = lens.target_probability[index];
  const rank = lens.target_rank[index];
  return h(
    "div",
    {},
    bars(rows, {
      label: "Most probable next tokens",
      unit: "probability",
      first: "token",
      format: percent,
      to: 1,
    }),
    h(
      "p",
      { class: "soft" },
      `${visible(target.text)}, whose logit is taken apart, has ${percent(own)} (rank ${rank}).`,
    ),
  );
}
