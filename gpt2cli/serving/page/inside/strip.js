/**
 * The text as buttons, of which one token is looked at; walking with the arrows looks at each.
 *
 * @typedef {import("../types.js").Named} Named
 */

import { h } from "../dom.js";
import { rove, stop } from "../roving.js";
import { labels } from "../tokens.js";

export class Strip {
  /** @param {(index: number) => void} onpick */
  constructor(onpick) {
    this._onpick = onpick;
    /** @type {HTMLButtonElement[]} */
    this._buttons = [];
    this.element = h("div", {
      class: "strip",
      role: "toolbar",
      "aria-label": "Tokens of the text; the chosen one is looked at",
      onfocusin: (/** @type {FocusEvent} */ event) => this._choose(event.target),
      onclick: (/** @type {MouseEvent} */ event) => this._choose(event.target),
    });
    rove(this.element, "button");
  }

  /** @param {readonly Named[]} tokens */
  show(tokens) {
    const usual = { class: "token", tabindex: -1, "aria-pressed": "false" };
    this._buttons = labels(tokens).map((label, i) =>
      h("button", { ...usual, "data-index": i }, label),
    );
    this.element.replaceChildren(...this._buttons);
  }

  /** @param {number} index */
  choose(index) {
    const before = this.element.querySelector('[aria-pressed="true"]');
    before?.setAttribute("aria-pressed", "false");
    const button = this._buttons[index];
    button.setAttribute("aria-pressed", "true");
    stop(this.element, "button", button);
    const [box, frame] = [button.offsetTop, this.element];
    if (box < frame.scrollTop || box + button.offsetHeight > frame.scrollTop + frame.clientHeight) {
      frame.scrollTop = box - frame.clientHeight / 2;
    }
  }

  /** @param {EventTarget | null} target */
  _choose(target) {
    if (target instanceof HTMLButtonElement && target.getAttribute("aria-pressed") !== "true") {
      this._onpick(Number(target.dataset.index));
    }
  }
}
