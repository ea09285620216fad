/**
 * A page's text as a record that another page, or `gpt2 replay`, can read: format "gpt2-page",
 * version 1. Reading one gives everything or an error in one sentence, never a part.
 */

import { draft, textOf } from "./tokens.js";
import { inspected } from "./validation.js";

/**
 * @typedef {import("./types.js").Branch} Branch
 * @typedef {import("./types.js").Model} Model
 * @typedef {import("./types.js").Plan} Plan
 * @typedef {import("./types.js").Settings} Settings
 * @typedef {import("./types.js").State} State
 * @typedef {import("./types.js").Token} Token
 * @typedef {import("./types.js").Tree} Tree
 *
 * @typedef {object} PageRecord
 * @property {"gpt2-page"} format
 * @property {1} version
 * @property {Record<string, unknown>} model The facts of the model, and the size of its vocabulary.
 * @property {{branches: Record<string, Omit<Branch, "id">>, leaf: string}} tree
 * @property {Settings} settings
 * @property {Plan} plan
 */

const FRAGMENT = "#text=";
const MOST = 32e6; // bytes of a record; a fragment of some kB could become any number

/**
 * @param {State} state
 * @param {Model} model
 * @param {(token: Token, branch: Branch) => Token} [kept] What is kept of each token.
 * @returns {PageRecord}
 */
export function recordOf({ tree, settings, plan }, model, kept = named) {
  const branches = Object.values(tree.branches).map((branch) => {
    const { id, parent, name, origin } = branch;
    return [id, { parent, tokens: branch.tokens.map((token) => kept(token, branch)), name, origin }];
  });
  return {
    format: "gpt2-page",
    version: 1,
    model: { ...model.facts, vocab_size: model.config.vocab_size },
    tree: { branches: Object.fromEntries(branches), leaf: tree.leaf },
    settings,
    plan,
  };
}

/** A token without what was thought of it. @param {Token} token @returns {Token} */
export function named({ id, text, bytes }) {
  return bytes === undefined ? { id, text } : { id, text, bytes };
}

/**
 * The parts of the state that a record has. Tokens of another vocabulary become text, which is
 * read again.
 *
 * @param {unknown} record
 * @param {Model} model
 * @returns {Pick<State, "tree" | "settings" | "plan">}
 */
export function fromRecord(record, model) {
  const found = inspected(record);
  const size = model.config.vocab_size;
  if ((found.vocabulary ?? size) === size && found.most < size) return found.state;
  return { ...found.state, tree: asText(found.state.tree) };
}

/** @param {Tree} tree @returns {Tree} */
function asText(tree) {
  const branches = Object.values(tree.branches).map((branch) => {
    const text = textOf(branch.tokens);
    return [branch.id, { ...branch, tokens: text ? [draft(text)] : [], origin: null }];
  });
  return { ...tree, branches: Object.fromEntries(branches) };
}

/**
 * The fragment of a link that carries a record.
 *
 * @param {PageRecord} record
 * @returns {Promise<string>}
 */
export async function fragmentOf(record) {
  const bytes = new TextEncoder().encode(JSON.stringify(record));
  const packed = await collected(through(bytes, new CompressionStream("deflate-raw")), Infinity);
  let binary = "";
  for (const byte of packed) binary += String.fromCharCode(byte);
  const code = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  return FRAGMENT + code;
}

/** @param {string} fragment */
export function isRecord(fragment) {
  return fragment.startsWith(FRAGMENT);
}

/**
 * What a fragment carries, not inspected yet.
 *
 * @param {string} fragment
 * @returns {Promise<unknown>}
 */
export async function unpacked(fragment) {
  try {
    const code = fragment.slice(FRAGMENT.length).replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
    const plain = await collected(through(bytes, new DecompressionStream("deflate-raw")), MOST);
    return JSON.parse(new TextDecoder().decode(plain));
  } catch {
    throw new Error("the link is damaged or was cut off: ask for it again, or for the JSON file");
  }
}

/** @param {string} text @returns {unknown} */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("the file is no JSON");
  }
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {CompressionStream | DecompressionStream} change
 * @returns {ReadableStream<Uint8Array>}
 */
function through(bytes, change) {
  return new Blob([bytes]).stream().pipeThrough(change);
}

/**
 * @param {ReadableStream<Uint8Array>} stream
 * @param {number} most
 * @returns {Promise<Uint8Array>}
 */
async function collected(stream, most) {
  /** @type {BlobPart[]} */
  const parts = [];
  let size = 0;
  const reader = stream.getReader(); // not every browser goes through a stream by itself
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    size += step.value.length;
    if (size > most) throw new RangeError("too large");
    parts.push(new Uint8Array(step.value));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
