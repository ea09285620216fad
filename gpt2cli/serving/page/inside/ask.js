/**
 * What the server tells of a model's inside; the numbers are those of `gpt2 inspect --json`.
 *
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("../types.js").Plan} Plan
 *
 * @typedef {Named & {logit: number, probability: number, rank: number}} Choice
 *
 * @typedef {object} Contributions What each part adds to a logit.
 * @property {number} token_embedding
 * @property {number} position_embedding
 * @property {number[][]} heads (L, H)
 * @property {number[]} attention_bias (L)
 * @property {number[]} feed_forward (L)
 * @property {number} steering
 * @property {number} final_shift
 *
 * @typedef {object} Lens The K best tokens after each layer, the embeddings being the first.
 * @property {number[][][]} ids (L + 1, N, K)
 * @property {string[][][]} texts (L + 1, N, K)
 * @property {number[][][]} probabilities (L + 1, N, K)
 *
 * @typedef {object} Norms Of the numbers of each vector, at 2L + 1 norms. (2L + 1, 1) each
 * @property {number[][]} mean_in
 * @property {number[][]} variance_in
 * @property {number[][]} mean_normalised
 * @property {number[][]} variance_normalised
 * @property {number[][]} mean_out
 * @property {number[][]} variance_out
 *
 * @typedef {{index: number, activation: number, logit: number, versus?: number}} Neuron
 *
 * @typedef {object} Moved How a token stands without and with the interventions.
 * @property {number} id
 * @property {string} text
 * @property {{probability: number, rank: number, logit: number}} before
 * @property {{probability: number, rank: number, logit: number}} after
 *
 * @typedef {object} Inspection What happens to one token.
 * @property {number} first Its position.
 * @property {Named[]} tokens It alone.
 * @property {Choice} target The token whose logit is taken apart.
 * @property {Choice[]} next Best first.
 * @property {Contributions} contributions
 * @property {Contributions & {target: Choice}} [versus] Of the other token.
 * @property {Lens & {target_probability: number[], target_rank: number[]}} lens
 * @property {{stream: number[][], attention: number[][], feed_forward: number[][]}} activations
 *   Lengths of vectors. (L + 1, 1), (L, 1), (L, 1)
 * @property {Norms} norms
 * @property {number[][][]} attention_row How much of each token flows in. (L, H, position + 1)
 * @property {{token: number, position: number}} embedding Lengths of both vectors.
 * @property {Neuron[][]} neurons The strongest of each layer.
 * @property {{kl: number, tokens: Moved[]}} [effect]
 *
 * @typedef {object} Maps Of all heads. (L, H, N, N)
 * @property {number} first Where the first of the N points begins.
 * @property {number} block Tokens of which a point is the mean.
 * @property {number} size N
 * @property {Float32Array} values
 *
 * @typedef {object} Head What a head does for one token.
 * @property {number[]} scores Of each token of the text, before the mask. (T)
 * @property {number[]} weights (T)
 * @property {number[]} values Length of each weighted value. (T)
 * @property {number[]} q (D)
 * @property {number[]} k (D)
 * @property {number[]} v (D)
 * @property {number} output_norm
 * @property {Float32Array} map (T, T)
 *
 * @typedef {{prompt: number[], plan?: Plan}} Text What is read, and the interventions if any.
 */

import { post } from "../api.js";

const NEURONS = 8;

/**
 * @param {Text} text
 * @param {number} position
 * @param {{token: string | number | null, versus: string | number | null}} asked
 * @param {AbortSignal} [signal]
 * @returns {Promise<Inspection>}
 */
export function inspect(text, position, { token, versus }, signal) {
  const tokens = { ...(token !== null && { token }), ...(versus !== null && { versus }) };
  return post("inspect", { ...text, position, ...tokens, neurons: NEURONS }, signal);
}

/**
 * @param {Text} text
 * @param {AbortSignal} [signal]
 * @returns {Promise<Maps>}
 */
export async function attention(text, signal) {
  /** @type {{shape: number[], first: number, block: number, data: string}} */
  const found = await post("attention", text, signal);
  return { first: found.first, block: found.block, size: found.shape[3], values: unpacked(found) };
}

/**
 * @param {Text} text
 * @param {AbortSignal} [signal]
 * @returns {Promise<Lens & {first: number}>}
 */
export function lens(text, signal) {
  return post("lens", text, signal);
}

/**
 * @param {Text} text
 * @param {{layer: number, head: number, position: number}} place
 * @param {AbortSignal} [signal]
 * @returns {Promise<Head>}
 */
export async function head(text, place, signal) {
  /** @type {Omit<Head, "map"> & {map: {data: string}}} */
  const found = await post("head", { ...text, ...place }, signal);
  return { ...found, map: unpacked(found.map) };
}

/** @param {{data: string}} packed Base64 of little-endian float32. */
function unpacked({ data }) {
  const letters = atob(data);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}
