/** How long a continuation is, how many there are, what ends them, and what repeats them. */

import { h } from "../dom.js";
import { linesOf, toLines } from "../settings.js";
import { path } from "../tree.js";
import { numberField } from "./number_field.js";

/**
 * @typedef {import("../types.js").Settings} Settings
 * @typedef {import("../state.js").Store} Store
 */

/** @param {import("../app.js").Page} page */
export function runSettings({ store, model }) {
  const longest = model.config.context_length;
  return h(
    "div",
    { class: "run" },
    whole(store, "max_tokens", "Length", "The most tokens of a continuation.", longest),
    whole(store, "n", "Continuations", "So many at once, each by itself.", model.limits.texts),
    seedField(store),
    stopField(store),
  );
}

/**
 * @param {Store} store
 * @param {"max_tokens" | "n"} name
 * @param {string} label
 * @param {string} does
 * @param {number} most
 */
function whole(store, name, label, does, most) {
  const id = `does-${name}`;
  const allowed = /** @param {number} x */ (x) => Number.isInteger(x) && x >= 1 && x <= most;
  const range = `a whole number from 1 to ${most}`;
  const number = numberField(
    label,
    id,
    { least: 1, most, step: 1, logarithmic: true, allowed, range },
    (value) => change(store, { [name]: value }, `slide ${name}`),
    () => store.settle(),
  );
  store.subscribe(
    ({ settings }) => settings[name],
    ({ settings }) => number.show(settings[name], false),
  );
  return h(
    "div",
    { class: "rule", "data-field": name },
    h("span", { class: "name" }, label),
    number.slider,
    number.field,
    number.wrong,
    h("p", { class: "soft does", id }, does),
  );
}

/** @param {Store} store */
function seedField(store) {
  const field = h("input", {
    id: "seed",
    type: "text",
    inputmode: "numeric",
    pattern: "[0-9]*",
    placeholder: "drawn anew",
    autocomplete: "off",
    "aria-describedby": "does-seed",
    oninput: typed,
    onchange: () => store.settle(),
  });
  const wrong = h("p", { class: "wrong", hidden: true }, "This must be a whole number, or empty.");
  const used = h("p", { class: "soft used" });

  function typed() {
    const text = field.value.trim();
    const value = text === "" ? null : Number(text);
    const isAllowed = value === null || (/^[0-9]+$/.test(text) && Number.isSafeInteger(value));
    wrong.hidden = isAllowed;
    field.setAttribute("aria-invalid", String(!isAllowed));
    if (isAllowed) change(store, { seed: value }, "type seed");
  }

  store.subscribe(
    ({ settings }) => settings.seed,
    ({ settings: { seed } }) => {
      const text = seed === null ? "" : String(seed);
      if (field.value.trim() !== text) field.value = text;
    },
  );
  store.subscribe(
    ({ tree }) => path(tree).findLast(({ origin }) => origin !== null)?.origin?.seed,
    ({ tree }) => {
      const seed = path(tree).findLast(({ origin }) => origin !== null)?.origin?.seed;
      used.replaceChildren();
      if (seed === undefined) return;
      const keep = () => change(store, { seed }, null);
      used.append(`The last text had ${seed}. `, h("button", { onclick: keep }, "Use it again"));
    },
  );
  return h(
    "div",
    { class: "setting" },
    h("label", { for: "seed" }, "Seed"),
    field,
    wrong,
    h("p", { class: "soft does", id: "does-seed" }, "The same seed gives the same text again."),
    used,
  );
}

/** @param {Store} store */
function stopField(store) {
  const field = h("textarea", {
    id: "stop",
    rows: 2,
    spellcheck: "false",
    "aria-describedby": "does-stop",
    oninput: () => change(store, { stop: linesOf(field.value) }, "type stop"),
    onchange: () => store.settle(),
  });
  store.subscribe(
    ({ settings }) => settings.stop,
    ({ settings: { stop } }) => {
      if (toLines(linesOf(field.value)) !== toLines(stop)) field.value = toLines(stop);
    },
  );
  const does = "A continuation ends before any of these, one to a line; \\n is the end of a line.";
  return h(
    "div",
    { class: "setting" },
    h("label", { for: "stop" }, "Stop texts"),
    field,
    h("p", { class: "soft does", id: "does-stop" }, does),
  );
}

/** @param {Store} store @param {Partial<Settings>} part @param {string | null} join */
function change(store, part, join) {
  store.update(({ settings }) => ({ settings: { ...settings, ...part } }), { join });
}
