/** Continuations stream into the tree: each of the `n` samples into a branch of its own. */

import { Refusal, continued } from "../api.js";
import { perFrame, say } from "../dom.js";
import { added, appended, changed, children, tokensOf, walked } from "../tree.js";
import { requestOf } from "./request.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../api.js").News} News
 * @typedef {import("../types.js").Origin} Origin
 * @typedef {import("../types.js").State} State
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("../types.js").Tree} Tree
 *
 * @typedef {object} Sample A continuation that comes.
 * @property {string | null} id Its branch, once it has a token.
 * @property {boolean} isOver Whether the person has taken its branch away or gone on in it.
 * @property {Token[]} waiting Tokens that are not in the tree yet.
 * @property {Origin} origin
 * @property {boolean} isEnded Whether its end is not in the tree yet.
 */

export class Writer {
  /**
   * @param {Page} page
   * @param {import("./judging.js").Judge} judge
   */
  constructor({ store, model }, judge) {
    this._store = store;
    this._model = model;
    this._judge = judge;
    /** @type {AbortController | null} */
    this._stop = null;
    this._count = 0;
    /** @type {Set<(isWriting: boolean) => void>} */
    this._listeners = new Set();
  }

  get isWriting() {
    return this._stop !== null;
  }

  /** Call `react` whenever writing begins or ends. @param {(isWriting: boolean) => void} react */
  watch(react) {
    this._listeners.add(react);
    react(this.isWriting);
  }

  stop() {
    this._stop?.abort();
  }

  /** Continue the text that is shown; what is being written ends. */
  async write() {
    this.stop();
    const stop = new AbortController();
    this._become(stop);
    say("");
    try {
      await this._judge.settled();
      if (!stop.signal.aborted) await this._stream(stop);
    } catch (error) {
      if (error instanceof Refusal) say(sentence(error), "error");
      else if (!stop.signal.aborted) throw error;
    } finally {
      if (this._stop === stop) this._become(null);
    }
  }

  /** @param {AbortController} stop */
  async _stream(stop) {
    const { state } = this._store;
    const ids = tokensOf(state.tree).map(({ id }) => id);
    const settings = requestOf(state);
    const { seed } = settings;
    const { facts } = this._model;
    /** @type {Sample[]} */
    const samples = Array.from({ length: state.settings.n }, (_, sample) => ({
      id: null,
      isOver: false,
      isEnded: false,
      waiting: [],
      origin: { seed, sample, settings, facts, finish: null },
    }));
    const parent = state.tree.leaf;
    this._count += 1;
    const join = `continuation ${this._count}`;
    const show = () => {
      this._store.update(({ tree }) => ({ tree: grown(tree, parent, samples) }), { join });
      if (samples.every(({ isOver }) => isOver)) stop.abort();
    };
    const soon = perFrame(show);
    let written = 0;
    try {
      for await (const step of continued(ids, settings, stop.signal)) {
        if ("news" in step) {
          written += step.news.filter(({ token }) => token).length;
          for (const news of step.news) take(samples[news.sample], news);
        } else {
          for (const sample of samples) learn(sample, step.facts);
        }
        soon();
      }
      say(`${written} tokens written${samples.length > 1 ? ` in ${samples.length} texts` : ""}.`);
    } finally {
      show();
      this._store.settle();
      if (stop.signal.aborted && written) say(`Stopped after ${written} tokens.`);
    }
  }

  /** @param {AbortController | null} stop */
  _become(stop) {
    this._stop = stop;
    for (const react of this._listeners) react(stop !== null);
  }
}

/** @param {Sample} sample @param {News} news */
function take(sample, { token, finish_reason }) {
  if (token) sample.waiting.push(token);
  if (finish_reason) {
    sample.origin = { ...sample.origin, finish: finish_reason };
    sample.isEnded = true;
  }
}

/** @param {Sample} sample @param {Record<string, unknown>} facts */
function learn(sample, facts) {
  sample.origin = { ...sample.origin, facts };
  sample.isEnded = true;
}

/**
 * The tree with all that has come since it was last asked for.
 *
 * @param {Tree} tree
 * @param {string} parent
 * @param {Sample[]} samples
 * @returns {Tree}
 */
function grown(tree, parent, samples) {
  for (const sample of samples) {
    const { id, waiting, origin } = sample;
    sample.isOver ||= id === null ? !tree.branches[parent] : isTaken(tree, id);
    if (sample.isOver) continue;
    sample.waiting = [];
    if (id !== null) {
      if (waiting.length) tree = appended(tree, id, waiting);
      if (sample.isEnded) tree = ended(tree, id, origin);
    } else if (waiting.length) {
      const found = added(tree, parent, waiting, origin);
      sample.id = found.id;
      // The first text to come is shown, unless the person has gone elsewhere.
      tree = tree.leaf === parent ? walked(found.tree, found.id) : found.tree;
    }
    sample.isEnded = false;
  }
  return tree;
}

/** @param {Tree} tree @param {string} id */
function isTaken(tree, id) {
  return !tree.branches[id] || children(tree, id).length > 0;
}

/** @param {Tree} tree @param {string} id @param {Origin} origin */
function ended(tree, id, { facts, finish }) {
  const before = tree.branches[id].origin;
  return before ? changed(tree, id, { origin: { ...before, facts, finish } }) : tree;
}

/** @param {Refusal} error */
function sentence({ message, status }) {
  if (status !== 0) return message;
  return `${message}; what came stays, and Continue goes on from there when it is back`;
}
