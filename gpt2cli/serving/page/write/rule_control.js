/**
 * The controls of one rule of sampling: a switch, a slider, a field, and what the rule does.
 *
 * @typedef {import("./rules.js").Control} Control
 * @typedef {import("../types.js").Settings} Settings
 * @typedef {Settings["sampling"]} Sampling
 */

import { h, say } from "../dom.js";
import { NOT_WITH_MIROSTAT } from "../settings.js";
import { numberField } from "./number_field.js";
import { ruleName } from "./rules.js";

/**
 * @param {Control} control
 * @param {import("../state.js").Store} store
 */
export function ruleControl(control, store) {
  const { field, label, usual, of } = control;
  const id = `does-${field}`;
  let last = usual; // what it is switched on with again
  const number = numberField(label, id, control, (value) => set(value, `slide ${field}`), settle);
  const check = h("input", { type: "checkbox", role: "switch", "aria-describedby": id });
  check.addEventListener("change", () => set(check.checked ? last : null, null));
  const paper = control.paper;
  const element = h(
    "div",
    { class: of ? "rule detail" : "rule", "data-field": field },
    h("label", { class: "name" }, of ? "" : check, of ? h("span", {}, label) : ` ${label}`),
    number.slider,
    number.field,
    number.wrong,
    h(
      "p",
      { class: "soft does", id },
      control.does,
      paper && " ",
      paper && h("a", { href: paper[1], target: "_blank", rel: "noreferrer" }, paper[0]),
    ),
  );

  /** @param {number | null} value @param {string | null} join */
  function set(value, join) {
    const before = store.state.settings.sampling;
    const clash = value === null ? [] : clashing(field, before);
    if (clash.length) say(`${clash.map(ruleName).join(", ")} off: not together with ${label}`);
    const off = Object.fromEntries(clash.map((name) => [name, null]));
    store.update(
      ({ settings }) => ({
        settings: { ...settings, sampling: { ...settings.sampling, ...off, [field]: value } },
      }),
      { join },
    );
  }

  function settle() {
    store.settle();
  }

  store.subscribe(
    ({ settings }) => settings.sampling,
    ({ settings: { sampling } }) => {
      const value = sampling[field] ?? null;
      if (value !== null) last = value;
      const isOff = of ? !sampling[of] : value === null;
      check.checked = value !== null;
      element.classList.toggle("off", isOff);
      number.show(value ?? last, isOff);
    },
  );
  return element;
}

/**
 * The settings that are on and that the server does not take together with another.
 *
 * @param {string} field
 * @param {Sampling} sampling
 */
function clashing(field, sampling) {
  const others = NOT_WITH_MIROSTAT.includes(field) ? ["mirostat_tau"] : [];
  const all = field === "mirostat_tau" ? NOT_WITH_MIROSTAT : others;
  return all.filter((name) => (sampling[name] ?? null) !== null);
}
