/** What else could stand in a token's place: the best alternatives, each of which can be taken. */

import { h } from "../dom.js";
import { percent, short } from "../numbers.js";
import { tokensOf } from "../tree.js";
import { visible } from "../tokens.js";
import { branched } from "./editing.js";
import { surprisal } from "./figures.js";

/**
 * @typedef {import("../state.js").Store} Store
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("../types.js").Token} Token
 */

const KEYS = 9; // alternatives that a digit takes

/**
 * Take another token in the place of one, or at the end: a branch begins, which is shown.
 *
 * @param {Store} store
 * @param {number} index
 * @param {Named} other
 */
export function take(store, index, { id, text, bytes }) {
  const present = tokensOf(store.state.tree)[index];
  const top = present?.top ?? [];
  const at = top.findIndex((one) => one.id === id);
  const named = bytes === undefined ? { id, text } : { id, text, bytes };
  const token = at < 0 ? named : { ...named, logprob: top[at].logprob, rank: at + 1, top };
  store.update(({ tree, view }) => ({
    tree: branched(tree, index, [token]),
    view: { ...view, token: null },
  }));
}

/**
 * The alternative that a digit means, at the token that is looked at.
 *
 * @param {readonly Token[]} tokens
 * @param {number} index
 * @param {string} key
 */
export function keyed(tokens, index, key) {
  const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
  return digit ? (tokens[index]?.top?.[digit - 1] ?? null) : null;
}

/**
 * A token and its alternatives.
 *
 * @param {Token} token
 * @param {number} index
 * @param {number} count Tokens of the text.
 * @param {(other: Named & {logprob: number}) => void} onTake
 * @returns {Node[]}
 */
export function alternatives(token, index, count, onTake) {
  const { logprob, rank, top } = token;
  const isKnown = typeof logprob === "number";
  return [
    h(
      "p",
      { class: "token-line" },
      h("b", { class: "token" }, shown(token)),
      h("span", { class: "soft" }, ` ${index + 1} of ${count}`),
    ),
    isKnown
      ? h(
          "dl",
          { class: "token-facts" },
          ...fact("probability", percent(Math.exp(logprob))),
          ...fact("rank", (rank ?? 0).toLocaleString("en")),
          ...fact("surprisal", `${short(surprisal(token))} bits`),
        )
      : h("p", { class: "soft" }, unknown(token)),
    top?.length ? list(token, top, onTake) : null,
  ].filter((node) => node !== null);
}

/** @param {Token} token */
function unknown({ logprob }) {
  return logprob === null ? "Nothing comes before it, so nothing predicts it." : "Not judged yet.";
}

/** @param {string} name @param {string} value */
function fact(name, value) {
  return [h("dt", {}, name), h("dd", { class: "number" }, value)];
}

/**
 * @param {Token} token
 * @param {(Named & {logprob: number})[]} top
 * @param {(other: Named & {logprob: number}) => void} onTake
 */
function list(token, top, onTake) {
  const rows = top.map((other, i) => {
    const share = Math.exp(other.logprob);
    const isHere = other.id === token.id;
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(share));
    const button = h(
      "button",
      {
        "aria-current": isHere ? "true" : null,
        onclick: () => (isHere ? undefined : onTake(other)),
        title: isHere ? "This token stands here" : "Take this one, and write on from it",
      },
      h("kbd", { "aria-hidden": "true" }, i < KEYS ? String(i + 1) : ""),
      h("span", { class: "token" }, shown(other), isHere ? h("i", {}, " here") : null),
      bar,
      h("span", { class: "number" }, percent(share)),
    );
    return h("li", {}, button);
  });
  return h("ol", { class: "alternatives", "aria-label": "Instead" }, ...rows);
}

/** @param {Named} token */
function shown({ text }) {
  return visible(text) || "(nothing)";
}
