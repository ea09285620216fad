/** The alternatives of the token under the mouse, beside it; the mouse may go in and take one. */

import { h, perFrame } from "../dom.js";
import { alternatives } from "./alternatives.js";

/**
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("../types.js").Token} Token
 */

const PATIENCE = 160; // milliseconds over a token until it is shown
const GRACE = 260; // milliseconds outside until it is hidden
const MARGIN = 8; // pixels to the edges of the window

export class Hover {
  /**
   * @param {HTMLElement} element What the mouse moves over.
   * @param {import("./backdrop.js").Backdrop} backdrop
   * @param {() => readonly Token[]} tokens
   * @param {(index: number, other: Named & {logprob: number}) => void} onTake
   */
  constructor(element, backdrop, tokens, onTake) {
    this._backdrop = backdrop;
    this._tokens = tokens;
    this._onTake = onTake;
    this._timer = 0;
    /** @type {Token | null} */
    this._token = null;
    // Whoever has no mouse finds the same beside the text, of the token at the caret.
    this._card = h("div", { class: "hover panel", hidden: true, "aria-hidden": "true" });
    element.append(this._card);
    const area = /** @type {HTMLElement} */ (element.querySelector("textarea"));
    const seek = perFrame((/** @type {number} */ x, /** @type {number} */ y) => this._seek(x, y));
    area.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && !event.buttons) seek(event.clientX, event.clientY);
    });
    area.addEventListener("pointerleave", () => this._later(() => this.hide(), GRACE));
    this._card.addEventListener("pointerenter", () => clearTimeout(this._timer));
    this._card.addEventListener("pointerleave", () => this._later(() => this.hide(), GRACE));
    element.addEventListener("scroll", () => this.hide(), { capture: true, passive: true });
    document.addEventListener("keydown", () => this.hide());
  }

  hide() {
    clearTimeout(this._timer);
    this._token = null;
    this._card.hidden = true;
  }

  /** @param {number} x @param {number} y */
  _seek(x, y) {
    const found = this._backdrop.at(x, y);
    const token = found && this._tokens()[found.index];
    if (token === this._token) {
      if (token) clearTimeout(this._timer);
      return;
    }
    if (!found || !token) this._later(() => this.hide(), GRACE);
    else this._later(() => this._show(token, found.index, found.box), PATIENCE);
  }

  /** @param {Token} token @param {number} index @param {DOMRect} box */
  _show(token, index, box) {
    this._token = token;
    const parts = alternatives(token, index, this._tokens().length, (other) => {
      this.hide();
      this._onTake(index, other);
    });
    this._card.replaceChildren(...parts);
    for (const button of this._card.querySelectorAll("button")) button.tabIndex = -1;
    this._card.hidden = false;
    const { width, height } = this._card.getBoundingClientRect();
    const right = window.innerWidth - width - MARGIN;
    const isRoom = box.bottom + height + MARGIN < window.innerHeight;
    this._card.style.left = `${Math.max(MARGIN, Math.min(box.left - MARGIN, right))}px`;
    this._card.style.top = `${isRoom ? box.bottom : Math.max(MARGIN, box.top - height)}px`;
  }

  /** @param {() => void} act @param {number} milliseconds */
  _later(act, milliseconds) {
    clearTimeout(this._timer);
    this._timer = window.setTimeout(act, milliseconds);
  }
}
