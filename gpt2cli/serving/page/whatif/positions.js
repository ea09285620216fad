/** The tokens of the text as switches: one that is hidden is attended to by no later token. */

import { h } from "../dom.js";
import { rove } from "../roving.js";
import { pieces, visible } from "../tokens.js";
import { tokensOf } from "../tree.js";
import { toggled } from "../plan.js";
import { readOf } from "./text.js";

/** @typedef {import("../app.js").Page} Page */

/**
 * @param {Page} page
 * @returns {HTMLElement}
 */
export function positions({ store, model }) {
  const note = h("p", { class: "soft note" });
  const strip = h("div", { role: "toolbar", "aria-label": "Hide positions", class: "positions" });
  /** @type {HTMLButtonElement[]} */
  let buttons = [];
  strip.addEventListener("click", (event) => {
    const name = /** @type {Element} */ (event.target).closest("button")?.dataset.part;
    if (name) store.update(({ plan }) => ({ plan: toggled(plan, name) }));
  });
  rove(strip, "button");
  const show = () => {
    const { ablate } = store.state.plan;
    buttons.forEach((one, i) => {
      const isOff = ablate.includes(`position.${i}`);
      one.setAttribute("aria-pressed", String(isOff));
      one.dataset.state = isOff ? "off" : "on";
    });
  };
  store.subscribe(
    ({ tree, view }) => (view.room === "whatif" ? tree : null),
    ({ tree, view }) => {
      if (view.room !== "whatif") return;
      const read = readOf(tree, model);
      const texts = pieces(read).map(visible);
      const more = tokensOf(tree).length - read.length;
      note.textContent = more ? `The context is full: ${more} tokens before these are not read.` : "";
      buttons = texts.map((text, i) =>
        h(
          "button",
          {
            class: "switch token",
            tabindex: i === 0 ? 0 : -1,
            "data-part": `position.${i}`,
            "aria-label": `position ${i}, ${text || "part of a character"}, hidden`,
            title: `position ${i}`,
            disabled: model.unchangeable !== null,
          },
          text || "·",
        ),
      );
      strip.replaceChildren(...buttons);
      show();
    },
  );
  store.subscribe((state) => state.plan, show);
  return h("div", {}, note, strip);
}
