/**
 * What the server can be asked: one function per endpoint, as `/openapi.json` describes them.
 *
 * @typedef {import("./types.js").Model} Model
 * @typedef {import("./types.js").Named} Named
 * @typedef {import("./types.js").Token} Token
 * @typedef {import("./types.js").Plan} Plan
 */

import { read, write } from "./storage.js";

const ROOT = "page/v1/";
const KEY = "gpt2-key"; // of the session's storage

/** A refusal, in the server's words; `status` 0 says that it cannot be reached. */
export class Refusal extends Error {
  /**
   * @param {string} message
   * @param {number} status
   * @param {string | null} [param] The field that is wrong.
   */
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** @type {string | null} The key of the server. */
let key = read("sessionStorage", KEY);

/** Send a key from now on, and keep it for this tab where the browser lets us. @param {string} given */
export function useKey(given) {
  key = given;
  write("sessionStorage", KEY, given);
}

/** @returns {Promise<Model>} */
export function model() {
  return get("model");
}

/**
 * The tokens of a text, each with what the model thought of it.
 *
 * @param {string | number[]} prompt
 * @param {AbortSignal} [signal]
 * @returns {Promise<{tokens: Token[]}>}
 */
export function score(prompt, signal) {
  return post("score", { prompt, top: 10 }, signal);
}

/**
 * The logits of the best tokens after a text, before any rule.
 *
 * `log_total` is the logarithm of the sum of all exponentials, `entropy` is in nats, both of the
 * whole vocabulary. All tokens that are neither among the best nor in the text itself are summed
 * up in groups of neighbours in rank, `rest`: of each how many they are, the mean of their logits,
 * the logarithm of the sum of their exponentials, and the best of their logits.
 *
 * @typedef {object} Candidates
 * @property {(Named & {logit: number})[]} candidates Best first.
 * @property {(Named & {logit: number})[]} text The tokens of the text that are not among them.
 * @property {{counts: number[], means: number[], masses: number[], tops: number[]}} rest
 * @property {number} log_total
 * @property {number} entropy
 * @property {number} size
 * @property {number} read How many tokens were read: the end of a text that is too long.
 *
 * @param {number[]} prompt
 * @param {AbortSignal} [signal]
 * @returns {Promise<Candidates>}
 */
export function next(prompt, signal) {
  return post("next", { prompt, top: 1000 }, signal);
}

/**
 * What each rule of sampling does to the next token's candidates, computed by the server.
 *
 * @typedef {object} Stage
 * @property {string} rule
 * @property {number} candidates Tokens that are left.
 * @property {(Named & {before: number, after: number})[]} top Probabilities.
 *
 * @param {number[]} prompt
 * @param {Record<string, unknown>} settings
 * @param {AbortSignal} [signal]
 * @returns {Promise<{stages: Stage[]}>}
 */
export function stages(prompt, settings, signal) {
  return post("stages", { ...settings, prompt }, signal);
}

/**
 * Continue a text: what each step of the model adds to its `n` samples.
 *
 * @typedef {object} News
 * @property {number} sample
 * @property {Token | null} token null where a text has ended without one.
 * @property {string | null} finish_reason
 *
 * @typedef {{news: News[]} | {seed: number, done: true, facts: Record<string, unknown>}} Step
 *
 * @param {number[]} prompt
 * @param {Record<string, unknown>} settings Fields of `/v1/completions`, and perhaps `plan`.
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<Step>}
 */
export function continued(prompt, settings, signal) {
  return stream("continue", { ...settings, prompt, top: 10 }, signal);
}

/**
 * A request of an endpoint that answers at once.
 *
 * @template T
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

/**
 * @template T
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
export async function post(path, body, signal) {
  return (await ask(path, posted(body, signal))).json();
}

/**
 * The events of an endpoint that answers step by step. Raises `Refusal` also when the server has
 * gone in the middle.
 *
 * @template T
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<T>}
 */
export async function* stream(path, body, signal) {
  const response = await ask(path, posted(body, signal));
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(unreachable);
      if (done) throw new Refusal("the server has gone before the end", 0);
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = /** @type {string} */ (events.pop());
      for (const event of events) {
        const data = event.slice("data: ".length);
        if (data === "[DONE]") return;
        const found = JSON.parse(data);
        if (found.error) throw new Refusal(found.error.message, 500, found.error.param);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {object} body @param {AbortSignal} [signal] @returns {RequestInit} */
function posted(body, signal) {
  return {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
}

/** @param {string} path @param {RequestInit} request */
async function ask(path, request) {
  const headers = new Headers(request.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const response = await fetch(ROOT + path, { ...request, headers }).catch(unreachable);
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  const message = found.error?.message ?? `the server answers ${response.status}`;
  throw new Refusal(message, response.status, found.error?.param ?? null);
}

/** @param {unknown} error @returns {never} */
function unreachable(error) {
  if (error instanceof DOMException && error.name === "AbortError") throw error;
  throw new Refusal("the server cannot be reached", 0);
}
