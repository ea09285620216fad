/** Switching off: the board, the positions, and what takes the place of what is off. */

import { h } from "../dom.js";
import { textOf } from "../tokens.js";
import { board } from "./board.js";
import { positions } from "./positions.js";
import { readOf } from "./text.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Plan} Plan
 */

/** @param {Page} page @returns {HTMLElement} */
export function ablate(page) {
  return h(
    "div",
    {},
    h(
      "p",
      { class: "soft" },
      "What is off adds nothing to the stream (Michel et al. 2019, arXiv:1905.10650). Arrow keys " +
        "walk over the board, space switches.",
    ),
    board(page),
    instead(page),
    h("h3", {}, "Hide tokens"),
    h(
      "p",
      { class: "soft" },
      "No later token attends to one that is hidden, in any layer or head (attention knockout, " +
        "Geva et al. 2023, arXiv:2304.14767).",
    ),
    positions(page),
  );
}

/** Zero or the mean over a text. @param {Page} page */
function instead({ store, model }) {
  const disabled = model.unchangeable !== null;
  const text = () => textOf(readOf(store.state.tree, model));
  /** @param {Partial<Plan>} change @param {string | null} [join] */
  const become = (change, join = null) =>
    store.update(({ plan }) => ({ plan: { ...plan, ...change } }), { join });
  const zero = h("input", {
    type: "radio",
    name: "instead",
    disabled,
    onchange: () => become({ ablate_with: "zero" }),
  });
  const mean = h("input", {
    type: "radio",
    name: "instead",
    disabled,
    onchange: () =>
      become({ ablate_with: "mean", reference: store.state.plan.reference ?? text() }),
  });
  const reference = h("textarea", {
    rows: 3,
    disabled,
    oninput: () => become({ reference: reference.value }, "reference"),
    onchange: () => store.settle(),
  });
  const own = h("button", { onclick: () => become({ reference: text() }) }, "Take this text");
  const about = h(
    "div",
    { class: "reference" },
    h("label", {}, "Text of which the mean is taken; a longer one is better", reference),
    own,
  );
  store.subscribe(
    (state) => state.plan,
    ({ plan }) => {
      zero.checked = plan.ablate_with === "zero";
      mean.checked = plan.ablate_with === "mean";
      about.hidden = plan.ablate_with === "zero";
      if (reference.value !== plan.reference) reference.value = plan.reference ?? "";
    },
  );
  return h(
    "fieldset",
    {},
    h("legend", {}, "In its place"),
    h("label", {}, zero, " zero: nothing"),
    h("label", {}, mean, " its mean: only what it says of every text stays"),
    about,
  );
}
