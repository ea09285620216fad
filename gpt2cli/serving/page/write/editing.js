/** What typing does to the tree: pure functions from the text before and after to new branches. */

import { draft, isDraft, pieces, startsInside, textOf } from "../tokens.js";
import { added, changed, children, cut, merged, pruned, tokensOf, walked } from "../tree.js";
import { signed, unsigned } from "./signs.js";

/**
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("../types.js").Tree} Tree
 *
 * @typedef {object} Change Tokens from `first` to before `last` make room for a text.
 * @property {number} first
 * @property {number} last
 * @property {string} text
 */

/**
 * How many characters two texts have in common at the beginning, and of the others at the end.
 *
 * @param {string} before
 * @param {string} after
 * @returns {{start: number, end: number}}
 */
export function common(before, after) {
  const most = Math.min(before.length, after.length);
  let start = 0;
  while (start < most && before[start] === after[start]) start += 1;
  let end = 0;
  while (end < most - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  return { start, end };
}

/**
 * What was changed, in whole tokens.
 *
 * @param {readonly Token[]} tokens
 * @param {string} after What the editor shows now, with signs.
 * @returns {Change}
 */
export function difference(tokens, after) {
  const parts = pieces(tokens);
  const whole = parts.join("");
  const { start, end } = common(signed(whole), after);

  let first = 0;
  let from = 0;
  while (first < parts.length && from + parts[first].length <= start) {
    from += parts[first].length;
    first += 1;
  }
  let last = parts.length;
  let until = 0;
  while (last > first && until + parts[last - 1].length <= end) {
    last -= 1;
    until += parts[last].length;
  }
  // Neither side may keep only a part of a character's bytes; drafts beside become one.
  while (first > 0 && (isHalf(tokens[first]) || isDraft(tokens[first - 1]))) {
    first -= 1;
    from -= parts[first].length;
  }
  while (last < tokens.length && (isHalf(tokens[last]) || isDraft(tokens[last]))) {
    until -= parts[last].length;
    last += 1;
  }
  return { first, last, text: unsigned(after.slice(from, after.length - until), whole) };
}

/** @param {Token | undefined} token */
function isHalf(token) {
  return token !== undefined && startsInside(token);
}

/**
 * The tree after a change of the text that is shown. A typed branch at its end changes; anywhere
 * else a branch begins, so that nothing is lost that was written.
 *
 * @param {Tree} tree
 * @param {Change} change
 * @returns {Tree}
 */
export function edited(tree, { first, last, text }) {
  const tokens = tokensOf(tree);
  const fresh = [...(text ? [draft(text)] : []), ...tokens.slice(last).map(unjudged)];
  if (first === tokens.length && !fresh.length) return tree;
  const leaf = tree.branches[tree.leaf];
  const begin = tokens.length - leaf.tokens.length;
  if (!leaf.origin && first >= begin && !children(tree, leaf.id).length) {
    const own = [...leaf.tokens.slice(0, first - begin), ...fresh];
    if (!own.length && leaf.parent !== null && !leaf.name) return pruned(tree, leaf.id);
    return changed(tree, leaf.id, { tokens: own });
  }
  return branched(tree, first, fresh);
}

/**
 * A new branch after the first `place` tokens of the shown text, which is shown; without tokens
 * the text ends there.
 *
 * @param {Tree} tree
 * @param {number} place
 * @param {readonly Token[]} tokens
 * @returns {Tree}
 */
export function branched(tree, place, tokens) {
  const found = cut(tree, place);
  if (!tokens.length) return merged(walked(found.tree, found.id));
  const more = added(found.tree, found.id, tokens);
  return merged(walked(more.tree, more.id));
}

/**
 * Where typed text has to be read as tokens again: from the beginning of the word before the first
 * draft to the end of the word after the last. Words never share a token.
 *
 * @param {readonly Token[]} tokens
 * @returns {Change | null} null without drafts
 */
export function unread(tokens) {
  let first = tokens.findIndex(isDraft);
  if (first < 0) return null;
  let last = tokens.findLastIndex(isDraft) + 1;
  while (first > 0 && !beginsWord(tokens[first])) first -= 1;
  while (last < tokens.length && !beginsWord(tokens[last])) last += 1;
  return { first, last, text: textOf(tokens.slice(first, last)) };
}

/** @param {Named} token */
function beginsWord({ text, bytes }) {
  return bytes === undefined && /^ \S/.test(text);
}

/** @param {Token} token @returns {Token} */
function unjudged({ id, text, bytes }) {
  return bytes === undefined ? { id, text } : { id, text, bytes };
}
