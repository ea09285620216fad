/** What a continuation must match, and what the server says of it. */

import { h } from "../dom.js";

/**
 * @typedef {import("../types.js").Settings} Settings
 * @typedef {NonNullable<Settings["constraint"]>["kind"]} Kind
 * @typedef {import("../api.js").Refusal} Refusal
 */

/** @type {Record<Kind, {name: string, does: string, example: string}>} */
const KINDS = {
  choice: {
    name: "One of some texts",
    does: "The continuation is one of these, one to a line; \\n is the end of a line.",
    example: " yes",
  },
  regex: {
    name: "A regular expression",
    does: "The whole continuation matches this; \\d is 0 to 9.",
    example: " [A-Z][a-z]+",
  },
  json_schema: {
    name: "A JSON schema",
    does: "The continuation is JSON that this schema describes.",
    example: '{"type": "object"}',
  },
};

/** @param {import("../state.js").Store} store */
export function constraintField(store) {
  const wrong = h("p", { class: "wrong", id: "constraint-wrong", role: "alert" });
  const does = h("p", { class: "soft does", id: "constraint-does" });
  const kind = h(
    "select",
    { id: "constraint", onchange: chosen },
    h("option", { value: "" }, "Anything"),
    ...Object.entries(KINDS).map(([value, { name }]) => h("option", { value }, name)),
  );
  const field = h("textarea", {
    id: "constraint-value",
    rows: 3,
    spellcheck: "false",
    "aria-label": "What it must match",
    "aria-describedby": "constraint-does constraint-wrong",
    oninput: () => set(field.value, "type constraint"),
    onchange: () => store.settle(),
  });

  function chosen() {
    set(field.value, null);
    if (kind.value) field.focus();
  }

  /** @param {string} value @param {string | null} join */
  function set(value, join) {
    const constraint = kind.value ? { kind: /** @type {Kind} */ (kind.value), value } : null;
    store.update(({ settings }) => ({ settings: { ...settings, constraint } }), { join });
  }

  store.subscribe(
    ({ settings }) => settings.constraint,
    ({ settings: { constraint } }) => {
      kind.value = constraint?.kind ?? "";
      if (constraint && field.value !== constraint.value) field.value = constraint.value;
      field.hidden = constraint === null;
      does.textContent = constraint ? KINDS[constraint.kind].does : "";
      field.placeholder = constraint ? KINDS[constraint.kind].example : "";
      refused(null);
    },
  );

  /** Show what is wrong with it, if it is that. @param {Refusal | null} error */
  function refused(error) {
    const own = error !== null && error.param !== null && error.param in KINDS;
    wrong.textContent = own ? error.message : "";
    field.setAttribute("aria-invalid", String(own));
  }
  const element = h(
    "div",
    { class: "setting" },
    h("label", { for: "constraint" }, "It must be"),
    kind,
    field,
    wrong,
    does,
  );
  return { element, refused };
}
