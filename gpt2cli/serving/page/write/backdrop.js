/**
 * What lies behind the text of the editor: each token as a stretch that carries its colour and its
 * boundaries. Only tokens that have changed are touched, however long the text is.
 */

import { h } from "../dom.js";
import { pieces } from "../tokens.js";
import { levels } from "./figures.js";
import { signed } from "./signs.js";

/**
 * @typedef {import("../types.js").Token} Token
 * @typedef {{token: Token, text: string, element: HTMLElement}} Item
 */

/** A token's stretch of text. @param {Token} token @param {string} text */
export function stretch(token, text) {
  const level = levels(token);
  const name = level ? `s${level.surprisal} r${level.rank}` : "";
  return h("span", { class: token.logprob === undefined ? "open" : name }, signed(text));
}

/** Tokens in an element, each a stretch, and where they are. */
export class Backdrop {
  constructor() {
    // The last line break needs something after it, or its line would have no height.
    this.element = h("div", { class: "backdrop", "aria-hidden": "true" }, "\u200b");
    /** @type {Item[]} */
    this._items = [];
    /** @type {Map<Element, Item>} */
    this._byElement = new Map();
    /** @type {Element | null} */
    this._marked = null;
  }

  /** Show these tokens. @param {readonly Token[]} tokens @returns {string} the text as it is shown */
  show(tokens) {
    const texts = pieces(tokens);
    const before = this._items;
    /** @param {number} i @param {Item | undefined} item */
    const isSame = (i, item) => item?.token === tokens[i] && item.text === texts[i];
    const most = Math.min(before.length, tokens.length);
    let start = 0;
    while (start < most && isSame(start, before[start])) start += 1;
    let end = 0;
    while (end < most - start && isSame(tokens.length - 1 - end, before.at(-1 - end))) end += 1;

    const fresh = tokens.slice(start, tokens.length - end).map((token, i) => {
      const text = texts[start + i];
      return { token, text, element: stretch(token, text) };
    });
    const gone = before.slice(start, before.length - end);
    const next = end ? before[before.length - end].element : this.element.lastChild;
    for (const item of gone) {
      item.element.remove();
      this._byElement.delete(item.element);
    }
    for (const item of fresh) this._byElement.set(item.element, item);
    const added = document.createDocumentFragment();
    added.append(...fresh.map(({ element }) => element));
    this.element.insertBefore(added, next);
    this._items = [...before.slice(0, start), ...fresh, ...before.slice(before.length - end)];
    return signed(texts.join(""));
  }

  /** Set off the token at an index. @param {number | null} index */
  mark(index) {
    const element = index === null ? null : (this._items[index]?.element ?? null);
    if (element === this._marked) return;
    this._marked?.classList.remove("marked");
    element?.classList.add("marked");
    this._marked = element;
  }

  /**
   * The token at a place of the window, with the line of it that lies there.
   *
   * @param {number} x
   * @param {number} y
   * @returns {{index: number, box: DOMRect} | null}
   */
  at(x, y) {
    for (const element of document.elementsFromPoint(x, y)) {
      const item = this._byElement.get(element);
      if (!item) continue;
      const boxes = [...element.getClientRects()];
      const box = boxes.find(({ top, bottom }) => top <= y && y <= bottom) ?? boxes[0];
      return { index: this._items.indexOf(item), box };
    }
    return null;
  }

  /** The token that has the character before a place of the text. @param {number} offset */
  before(offset) {
    let end = 0;
    const found = this._items.findIndex(({ text }) => (end += text.length) >= offset && text !== "");
    return found < 0 ? null : found;
  }
}
