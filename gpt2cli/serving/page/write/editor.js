/**
 * The text: a textarea, so that typing, selecting and reading aloud are the browser's own, over a
 * backdrop with the same letters, which carries the colours.
 */

import { h, paced } from "../dom.js";
import { tokensOf } from "../tree.js";
import { keyed, take } from "./alternatives.js";
import { Backdrop } from "./backdrop.js";
import { common, difference, edited } from "./editing.js";
import { together, summary } from "./figures.js";
import { Hover } from "./hover.js";
import { short } from "../numbers.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("../types.js").Tree} Tree
 */

const PACE = 100; // milliseconds between two counts of a text that grows
const NEAR = 48; // pixels from the end at which the end is followed

/**
 * @param {Page} page
 * @param {import("./writing.js").Writer} writer
 * @returns {{element: HTMLElement, focus: () => void}} `focus` puts the caret at the end.
 */
export function editor({ store, model }, writer) {
  const backdrop = new Backdrop();
  const area = h("textarea", {
    id: "text",
    "aria-label": "Text",
    "aria-describedby": "text-facts",
    placeholder: "Begin to write, or let the model begin: Ctrl+Enter",
    spellcheck: "false",
    autocapitalize: "off",
    autocomplete: "off",
  });
  const paper = h("div", { class: "paper" }, backdrop.element, area);
  const surface = h("div", { class: "surface" }, paper);
  const facts = h("p", { id: "text-facts", class: "soft" });
  const element = h("div", { class: "editor" }, surface, facts);
  /** @type {readonly Token[]} */
  let tokens = [];

  /** @param {number} index @param {import("../types.js").Named & {logprob: number}} other */
  const taken = (index, other) => {
    take(store, index, other);
    focus();
    writer.write();
  };

  const focus = () => {
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  };

  const measure = paced(() => {
    const limit = model.config.context_length.toLocaleString("en");
    const parts = [`${tokens.length.toLocaleString("en")} of ${limit} tokens`];
    const { judged, bits, perplexity } = together([summary(tokens)]);
    if (judged) parts.push(`${bits.toFixed(1)} bits each`, `perplexity ${short(perplexity)}`);
    facts.textContent = parts.join(" · ");
  }, PACE);

  /** @param {{tree: Tree}} state */
  const show = ({ tree }) => {
    // Looked at before anything changes, so that the browser need not lay it out twice.
    const isAtEnd = surface.scrollHeight - surface.scrollTop - surface.clientHeight < NEAR;
    tokens = tokensOf(tree);
    const grew = put(area, backdrop.show(tokens));
    if (isAtEnd && grew) surface.scrollTop = surface.scrollHeight;
    measure();
    mark();
  };

  const mark = () => {
    const { token } = store.state.view;
    backdrop.mark(token);
  };

  const look = () => {
    const { selectionEnd: caret, value } = area;
    const token = caret === value.length ? null : backdrop.before(Math.max(caret, 1));
    if (store.state.view.token === token) return;
    store.update(({ view }) => ({ view: { ...view, token } }));
  };

  const hover = new Hover(element, backdrop, () => tokens, taken);
  const read = () => {
    hover.hide();
    const change = difference(tokens, area.value);
    store.update(({ tree }) => ({ tree: edited(tree, change) }), { join: "typing" });
    look();
  };

  area.addEventListener("input", (event) => {
    if (!(/** @type {InputEvent} */ (event).isComposing)) read();
  });
  area.addEventListener("compositionend", read);
  area.addEventListener("beforeinput", (event) => {
    if (event.inputType === "historyUndo" || event.inputType === "historyRedo") {
      event.preventDefault();
      if (event.inputType === "historyUndo") store.undo();
      else store.redo();
    }
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      writer.write();
    } else if (event.altKey && /^Digit[1-9]$/.test(event.code)) {
      const index = store.state.view.token ?? tokens.length - 1;
      const other = keyed(tokens, index, event.code.slice("Digit".length));
      if (!other) return;
      event.preventDefault();
      if (other.id !== tokens[index].id) taken(index, other);
    }
  });
  document.addEventListener("selectionchange", () => {
    if (document.activeElement === area) look();
  });
  area.addEventListener("blur", () => store.settle());

  store.subscribe(({ tree }) => tree, show);
  store.subscribe(({ view }) => view.token, mark);
  store.subscribe(
    ({ view }) => view,
    ({ view }) => {
      element.dataset.colour = view.colour;
      element.dataset.boundaries = String(view.boundaries);
    },
  );
  return { element, focus };
}

/**
 * Let a textarea have a text, changing only the part that differs, so that the caret stays; one at
 * the end stays at the end.
 *
 * @param {HTMLTextAreaElement} area
 * @param {string} text
 * @returns {boolean} whether something was added at the end
 */
function put(area, text) {
  const before = area.value;
  if (before === text) return false;
  const { start, end } = common(before, text);
  const { selectionStart, selectionEnd } = area;
  const isAtEnd = selectionStart === before.length && selectionEnd === before.length;
  area.setRangeText(text.slice(start, text.length - end), start, before.length - end, "preserve");
  const caret = isAtEnd ? text.length : area.selectionEnd;
  // A caret inside of what was replaced would become a selection of all of it.
  if (selectionStart === selectionEnd) area.setSelectionRange(caret, caret);
  return end === 0 && text.length > before.length;
}
