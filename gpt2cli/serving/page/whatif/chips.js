/** What is changed, one chip each, and the way back. */

import { h } from "../dom.js";
import { visible } from "../tokens.js";
import { beyond, cleared, inWords, isEmpty, partInWords, resteered, without } from "../plan.js";
import { readOf } from "./text.js";

/** @typedef {import("../app.js").Page} Page */

const MOST = 24; // chips that are shown by themselves

/** @param {Page} page @returns {HTMLElement} */
export function chips({ store, model }) {
  const title = h("h2", { id: "plan-title" });
  const list = h("ul", { class: "chips" });
  const back = h(
    "button",
    { onclick: () => store.update(({ plan }) => ({ plan: cleared(plan) })) },
    "All back on",
  );
  const show = () => {
    const { plan, tree } = store.state;
    const words = inWords(plan);
    title.textContent = isEmpty(plan)
      ? "Nothing is switched off: this is the model as it is"
      : `${words[0].toUpperCase()}${words.slice(1)}`;
    back.disabled = isEmpty(plan);
    const missing = new Set(beyond(plan, readOf(tree, model).length));
    const found = [
      ...plan.ablate.map((name) =>
        chip(
          missing.has(name) ? `${partInWords(name)} (not in this text)` : partInWords(name),
          "on again",
          () => store.update((state) => ({ plan: without(state.plan, [name]) })),
        ),
      ),
      ...plan.steer.map(({ towards, away, layer, strength }, i) =>
        chip(
          `${visible(away) || "nothing"} → ${visible(towards) || "nothing"} × ${strength}, layer ${layer}`,
          "no longer",
          () => store.update((state) => ({ plan: resteered(state.plan, i, null) })),
        ),
      ),
    ];
    const more = found.length - MOST;
    list.replaceChildren(
      ...found.slice(0, MOST),
      ...(more > 0 ? [h("li", { class: "soft" }, `and ${more} more`)] : []),
    );
    list.hidden = found.length === 0;
  };
  store.subscribe((state) => state.plan, show);
  store.subscribe((state) => state.tree, show);
  const heading = h("div", { class: "split" }, title, back);
  return h("div", { class: "plan panel", role: "group", "aria-labelledby": "plan-title" }, heading, list);
}

/** @param {string} text @param {string} what @param {() => void} remove */
function chip(text, what, remove) {
  return h(
    "li",
    {},
    h(
      "button",
      { class: "chip", onclick: remove, "aria-label": `${text}: ${what}`, title: what },
      text,
      h("span", { "aria-hidden": true }, " ✕"),
    ),
  );
}
