/** The room "What if": parts switched off, directions added, activations patched. */

import { Refusal, score } from "../api.js";
import { find, h, say } from "../dom.js";
import { rove } from "../roving.js";
import { emptyTree, tokensOf } from "../tree.js";
import { ablate } from "./ablate.js";
import { chips } from "./chips.js";
import { heads } from "./heads.js";
import { planNotice } from "./notice.js";
import { patch } from "./patch.js";
import { predictions } from "./predictions.js";
import { steer } from "./steer.js";
import { under } from "./under.js";

/** @typedef {import("../app.js").Page} Page */

const EXAMPLE = "O Romeo, Romeo! wherefore art thou";

/**
 * @param {HTMLElement} room
 * @param {Page} page
 */
export function openWhatIf(room, page) {
  find("#plan-notice").append(planNotice(page));
  const named = heads(page);
  const outcome = h("div", { class: "outcome" }, beginning(page), predictions(page), under(page));
  const tools = h("div", { class: "tools-of" });
  const body = h("div", { class: "bench" }, tools, outcome);
  const choice = toolsOf(
    [
      ["off", "Switch off", ablate(page)],
      ["steer", "Steer", steer(page)],
      ["heads", "Heads", named.element],
      ["patch", "Patch", patch(page)],
    ],
    (name) => {
      body.dataset.tool = name;
      outcome.hidden = name === "patch";
      if (name === "heads") named.open();
    },
  );
  tools.append(...choice);
  room.append(...unchangeable(page), chips(page), body);
}

/** What a model that cannot be changed says. @param {Page} page @returns {HTMLElement[]} */
function unchangeable({ model }) {
  if (model.unchangeable === null) return [];
  const remedy = /precision/.test(model.unchangeable)
    ? " Start the server with --precision fp32 to switch off and to steer; Heads and Patch work."
    : "";
  const why = `${model.unchangeable}.${remedy}`;
  return [h("p", { class: "panel problem", role: "note" }, why)];
}

/**
 * Tabs and their panels.
 *
 * @param {[string, string, HTMLElement][]} tools
 * @param {(name: string) => void} opened
 * @returns {HTMLElement[]}
 */
function toolsOf(tools, opened) {
  const tabs = tools.map(([name, label], i) =>
    h(
      "button",
      {
        role: "tab",
        id: `tool-${name}`,
        "aria-controls": `panel-${name}`,
        tabindex: i === 0 ? 0 : -1,
        onclick: () => open(i),
        onfocus: () => open(i),
      },
      label,
    ),
  );
  const panels = tools.map(([name, , element]) =>
    h(
      "div",
      { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tool-${name}`, class: "panel" },
      element,
    ),
  );
  /** @param {number} there */
  function open(there) {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === there));
      panels[i].hidden = i !== there;
    });
    opened(tools[there][0]);
  }
  open(0);
  const list = h("div", { role: "tablist", "aria-label": "What to change" }, ...tabs);
  rove(list, "button");
  return [list, ...panels];
}

/** Without a text there is nothing to predict: a field for one. @param {Page} page */
function beginning({ store }) {
  const field = h("input", { value: EXAMPLE, required: true, autocomplete: "off" });
  const form = h(
    "form",
    {
      class: "panel fields",
      onsubmit: async (/** @type {Event} */ event) => {
        event.preventDefault();
        try {
          const { tokens } = await score(field.value);
          store.update(() => ({ tree: withText(tokens) }));
        } catch (error) {
          if (!(error instanceof Refusal)) throw error;
          say(error.message, "error");
        }
      },
    },
    h("p", {}, "There is no text yet. Begin with one here, or write one in “Write”."),
    h("label", { class: "wide" }, "Text ", field),
    h("button", { class: "main" }, "Begin"),
  );
  store.subscribe(
    (state) => state.tree,
    ({ tree }) => (form.hidden = tokensOf(tree).length > 0),
  );
  return form;
}

/** @param {import("../types.js").Token[]} tokens */
function withText(tokens) {
  const tree = emptyTree();
  const root = tree.branches[tree.leaf];
  return { ...tree, branches: { [root.id]: { ...root, tokens } } };
}
