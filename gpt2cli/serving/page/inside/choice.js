/**
 * Which tokens' logits are taken apart: A, and perhaps B to subtract.
 *
 * @typedef {import("./ask.js").Choice} Choice
 * @typedef {{id: number, text: string, note?: string}} Candidate
 * @typedef {string | number | null} Picked An id, a typed text, or null for the usual one.
 */

import { h } from "../dom.js";
import { percent } from "../numbers.js";
import { visible } from "../tokens.js";

/**
 * A list of candidates and a field for others.
 *
 * @param {{label: string, none: string, onpick: (picked: Picked) => void}} options `none` says what
 *   is meant when nothing is picked.
 */
export function choice({ label, none, onpick }) {
  const select = h("select", {
    "aria-label": `${label}: from the candidates`,
    onchange: () => {
      field.value = "";
      onpick(select.value === "" ? null : Number(select.value));
    },
  });
  const field = h("input", {
    "aria-label": `${label}: typed`,
    placeholder: "or type one",
    autocomplete: "off",
    spellcheck: "false",
    size: 10,
    onchange: () => {
      select.value = "";
      onpick(field.value === "" ? null : field.value);
    },
  });
  const element = h("span", { class: "choice" }, h("b", {}, label, " "), select, " ", field);
  return { element, show };

  /** @param {readonly Candidate[]} offered @param {Picked} picked */
  function show(offered, picked) {
    const options = offered.map(({ id, text, note }) =>
      h("option", { value: id }, [visible(text), note].filter(Boolean).join(" · ")),
    );
    select.replaceChildren(h("option", { value: "" }, none), ...options);
    if (typeof picked === "number") {
      if (!offered.some(({ id }) => id === picked)) {
        select.append(h("option", { value: picked }, `token ${picked}`));
      }
      select.value = String(picked);
    }
  }
}

/**
 * The candidates, and the token that follows in the text.
 *
 * @param {readonly Choice[]} next
 * @param {import("../types.js").Named | undefined} following
 */
export function candidates(next, following) {
  /** @type {Candidate[]} */
  const found = next.map(({ id, text, probability }) => ({ id, text, note: percent(probability) }));
  if (following && !next.some(({ id }) => id === following.id)) {
    found.push({ id: following.id, text: following.text, note: "next in the text" });
  }
  return found;
}
