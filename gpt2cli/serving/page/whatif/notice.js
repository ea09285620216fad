/** What every room says while a plan changes the model, so that nobody writes under it unawares. */

import { h } from "../dom.js";
import { cleared, inWords, isEmpty } from "../plan.js";

/**
 * A line that says what is changed, with a button that ends it; hidden where nothing is.
 *
 * @param {import("../app.js").Page} page
 * @returns {HTMLElement}
 */
export function planNotice({ store }) {
  const words = h("span", {});
  const look = () => store.update(({ view }) => ({ view: { ...view, room: "whatif" } }));
  const clear = () => store.update(({ plan }) => ({ plan: cleared(plan) }));
  const notice = h(
    "aside",
    { class: "plan-notice", "aria-label": "The model is changed" },
    h("span", { "aria-hidden": true }, "⚠"),
    words,
    h("button", { onclick: look, class: "look" }, "What if"),
    h("button", { onclick: clear }, "All back on"),
  );
  store.subscribe(
    ({ plan, view }) => `${isEmpty(plan)} ${view.room} ${inWords(plan)}`,
    ({ plan, view }) => {
      const text = inWords(plan);
      const so = view.room === "inside" ? "all numbers are of that" : "texts are continued that way";
      words.textContent = `${text[0]?.toUpperCase() ?? ""}${text.slice(1)}; ${so}.`;
      notice.hidden = isEmpty(plan) || view.room === "whatif";
    },
  );
  return notice;
}
