/**
 * What makes the logit of a token, or of token A less token B: which tokens is chosen here.
 *
 * @typedef {import("./ask.js").Inspection} Inspection
 * @typedef {import("./choice.js").Picked} Picked
 */

import { h } from "../dom.js";
import { candidates, choice } from "./choice.js";
import { lesson } from "./lessons.js";
import { partsCharts, taken } from "./parts.js";

export class Logit {
  /**
   * @param {{onask: () => void, onpick: (layer: number, head: number | null) => void}} options
   *   `onask` is called when other tokens were chosen.
   */
  constructor({ onask, onpick }) {
    this._onpick = onpick;
    /** @type {{token: Picked, versus: Picked}} */
    this.asked = { token: null, versus: null };
    this._a = choice({ label: "A", none: "the most probable", onpick: pick("token", this) });
    this._b = choice({ label: "minus B", none: "nothing", onpick: pick("versus", this) });
    this._error = h("p", { class: "bad", role: "alert" });
    this._chart = h("div", { class: "chart" });
    this._title = h("h2", {}, "What makes the logit");
    const controls = h("div", { class: "controls" }, this._a.element, this._b.element);
    const hint = "Most tokens begin with a space: type it too.";
    controls.append(h("span", { class: "soft" }, hint));
    this.element = h("section", { class: "parts panel" }, this._title, lesson("parts"), controls);
    this.element.append(this._error, this._chart);

    /** @param {"token" | "versus"} which @param {Logit} self */
    function pick(which, self) {
      return (/** @type {Picked} */ picked) => {
        self.asked = { ...self.asked, [which]: picked };
        onask();
      };
    }
  }

  /** @param {Inspection} found @param {import("../types.js").Named | undefined} following */
  show(found, following) {
    this._error.textContent = "";
    const offered = candidates(found.next, following);
    this._a.show(offered, this.asked.token);
    this._b.show(offered, this.asked.versus);
    this._title.textContent = `What makes ${taken(found)}`;
    this._chart.replaceChildren(...partsCharts(found, this._onpick));
  }

  /**
   * Say that what was typed is no token, and go on without it; false if that is not what is wrong.
   *
   * @param {Error} error
   */
  refuse({ message }) {
    const found = /^(token|versus): /.exec(message);
    if (!found) return false;
    const which = /** @type {"token" | "versus"} */ (found[1]);
    this.asked = { ...this.asked, [which]: null };
    const rest = message.slice(found[0].length);
    this._error.textContent = `${which === "token" ? "A" : "B"}: ${rest}`;
    return true;
  }
}
