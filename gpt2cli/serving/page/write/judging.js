/**
 * Typed text becomes tokens, and tokens learn what the model thinks of them. Both are no steps of
 * the person, so neither is undone; after an undo what is missing is asked for again.
 */

import { Refusal, score } from "../api.js";
import { debounced, say } from "../dom.js";
import { isDraft } from "../tokens.js";
import { changed, exchanged, path, tokensOf, walked } from "../tree.js";
import { unread } from "./editing.js";

/**
 * @typedef {import("../state.js").Store} Store
 * @typedef {import("../types.js").Branch} Branch
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("../types.js").Tree} Tree
 */

const QUIET = 250; // milliseconds without typing until the model is asked
const AGAIN = 2000; // and until a server that is not there is asked again

export class Judge {
  /** @param {Store} store */
  constructor(store) {
    this._store = store;
    this._isOut = false; // whether the server could not be reached
    /** @type {string | null} The text that the server has refused, which is not asked for again. */
    this._refused = null;
    /** @type {AbortController | null} */
    this._asking = null;
    this._soon = debounced(() => this._work(), QUIET);
    store.subscribe(({ tree }) => tree, this._soon);
  }

  /**
   * Wait until all that was typed is tokens: in the text that is shown, in another, everywhere.
   *
   * @param {{everywhere?: boolean, leaf?: string}} [options]
   */
  async settled({ everywhere = false, leaf } = {}) {
    for (;;) {
      const { tree } = this._store.state;
      const text = leaf === undefined ? tree : walked(tree, leaf);
      const all = everywhere ? Object.values(tree.branches) : path(text);
      const open = all.find((branch) => branch.tokens.some(isDraft));
      if (!open) return;
      await this._read(open);
    }
  }

  /** Read and judge what is shown, unless something newer comes in between. */
  async _work() {
    this._asking?.abort();
    const asking = new AbortController();
    this._asking = asking;
    try {
      await this.settled();
      if (asking.signal.aborted) return;
      await this._judge(this._store.state.tree.leaf, asking.signal);
      if (this._isOut) say("The server is back.");
      this._isOut = false;
    } catch (error) {
      if (asking.signal.aborted) return;
      this._failed(error);
    }
  }

  /** The drafts of a branch become tokens. @param {Branch} branch */
  async _read(branch) {
    const change = unread(branch.tokens);
    if (!change) return;
    const { tokens } = await score(change.text);
    const fresh = tokens.map(({ id, text, bytes }) => (bytes ? { id, text, bytes } : { id, text }));
    this._learn((tree) => {
      if (tree.branches[branch.id]?.tokens !== branch.tokens) return tree;
      const { first, last } = change;
      const own = [...branch.tokens.slice(0, first), ...fresh, ...branch.tokens.slice(last)];
      return changed(tree, branch.id, { tokens: own });
    });
  }

  /**
   * Have the text that ends with a branch read and judged, as far as the server is there.
   *
   * @param {string} leaf
   */
  async know(leaf) {
    try {
      await this.settled({ leaf });
      await this._judge(leaf);
    } catch (error) {
      this._failed(error);
    }
  }

  /** @param {string} leaf @param {AbortSignal} [signal] */
  async _judge(leaf, signal) {
    const before = tokensOf(walked(this._store.state.tree, leaf));
    const ids = before.map(({ id }) => id);
    const name = ids.join();
    if (before.every(isJudged) || name === this._refused) return;
    const { tokens } = await score(ids, signal).catch((error) => {
      if (error instanceof Refusal && error.status === 400) this._refused = name;
      throw error;
    });
    this._learn((tree) => {
      if (!tree.branches[leaf]) return tree;
      return exchanged(tree, judged(before, tokens, tokensOf(walked(tree, leaf))));
    });
  }

  /** @param {(tree: Tree) => Tree} next */
  _learn(next) {
    this._store.update(({ tree }) => ({ tree: next(tree) }), { isStep: false });
  }

  /** @param {unknown} error */
  _failed(error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 0 || error.status === 503) {
      if (!this._isOut) say(`${error.message}: the text is kept here, and asked for again`, "error");
      this._isOut = true;
      setTimeout(this._soon, AGAIN - QUIET);
    } else {
      say(error.message, "error");
    }
  }
}

/** @param {Token} token */
function isJudged({ logprob, top }) {
  return logprob !== undefined && top !== undefined;
}

/**
 * What tokens have become: those of which something was missing, as far as the text is the same.
 *
 * @param {readonly Token[]} asked
 * @param {readonly Token[]} answers
 * @param {readonly Token[]} present
 */
function judged(asked, answers, present) {
  /** @type {Map<Token, Token>} */
  const instead = new Map();
  for (let i = 0; i < asked.length && asked[i].id === present[i]?.id; i += 1) {
    const token = present[i];
    if (isJudged(token)) continue;
    const { logprob, rank, top } = answers[i];
    // What was thought when it was written stays: interventions may have been at work.
    const thought = token.logprob === undefined ? { logprob, rank } : {};
    instead.set(token, { ...token, top, ...thought });
  }
  return instead;
}
