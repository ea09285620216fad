/** The side of the room "write": the candidates of the next token, and what chooses among them. */

import { h } from "../dom.js";
import { candidatesPanel } from "./candidates.js";
import { constraintField } from "./constraint.js";
import { ruleControl } from "./rule_control.js";
import { CONTROLS, GROUPS } from "./rules.js";
import { runSettings } from "./run_settings.js";

/**
 * Dispatches `take` on the element when a candidate is chosen: its `detail` is the token.
 *
 * @param {HTMLElement} element
 * @param {import("../app.js").Page} page
 */
export function openControls(element, page) {
  const { store, model } = page;
  const constraint = constraintField(store);
  const own = h("button", { onclick: reset }, "Back to the model's own");

  function reset() {
    const sampling = { ...model.sampling };
    store.update(({ settings }) => ({ settings: { ...settings, sampling } }));
  }

  const [first, ...others] = GROUPS;
  const rules = h(
    "section",
    { class: "panel rules", "aria-labelledby": "rules-title" },
    h("h2", { id: "rules-title" }, "How it is chosen"),
    ...first.controls.map((control) => ruleControl(control, store)),
    ...others.map((group) => groupOf(group, store)),
    own,
  );
  const run = h(
    "section",
    { class: "panel rules", "aria-labelledby": "run-title" },
    h("h2", { id: "run-title" }, "The continuation"),
    runSettings(page),
    constraint.element,
  );
  store.subscribe(
    ({ settings }) => settings.sampling,
    ({ settings }) => {
      own.disabled = isOwn(settings.sampling, model.sampling);
    },
  );
  element.classList.add("controls");
  element.append(candidatesPanel(page, constraint.refused), rules, run);
}

/**
 * Controls that are seldom used; what is on among them is said without opening it.
 *
 * @param {(typeof GROUPS)[number]} group
 * @param {import("../state.js").Store} store
 */
function groupOf({ name, controls }, store) {
  const on = h("span", { class: "soft" });
  const switched = controls.filter(({ of }) => !of);
  store.subscribe(
    ({ settings }) => settings.sampling,
    ({ settings: { sampling } }) => {
      const names = switched.filter(({ field }) => (sampling[field] ?? null) !== null);
      on.textContent = names.length
        ? ` on: ${names.map(({ label }) => label.split(":")[0]).join(", ")}`
        : "";
    },
  );
  return h(
    "details",
    {},
    h("summary", {}, name, on),
    ...controls.map((control) => ruleControl(control, store)),
  );
}

/** @typedef {Record<string, number | null>} Sampling */

/** @param {Sampling} sampling @param {Sampling} model */
function isOwn(sampling, model) {
  return CONTROLS.every(({ field }) => (sampling[field] ?? null) === (model[field] ?? null));
}
