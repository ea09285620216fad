/** Candidates as rows of a table, which are kept and only change what they say. */

import { h } from "../dom.js";
import { percent } from "../numbers.js";
import { visible } from "../tokens.js";

/**
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("./shown.js").Candidate} Candidate
 */

/**
 * @param {number} count
 * @param {(token: Named) => void} take
 */
export function candidateRows(count, take) {
  const rows = Array.from({ length: count }, () => candidateRow(take));
  const element = h(
    "table",
    { class: "choices" },
    h("caption", { class: "unseen" }, "Probabilities before and after the rules"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Token"),
        h("th", { scope: "col", class: "number" }, "Model"),
        h("th", { scope: "col" }, "With rules"),
      ),
    ),
    h("tbody", {}, ...rows.map((row) => row.element)),
  );
  /** @param {readonly Candidate[]} candidates */
  function show(candidates) {
    const most = Math.max(...candidates.map(({ before, after }) => Math.max(before, after)));
    rows.forEach((row, i) => row.show(candidates[i] ?? null, most));
  }
  return { element, show };
}

/** @param {(token: Named) => void} take */
function candidateRow(take) {
  /** @type {Candidate | null} */
  let shown = null;
  const name = h("bdi");
  const button = h("button", { class: "token", onclick: () => shown && take(shown.token) }, name);
  const bars = [h("span", { class: "before" }), h("span", { class: "after" })];
  const before = h("td", { class: "number" });
  const after = h("td", { class: "after-value" });
  const element = h(
    "tr",
    { hidden: true },
    h("th", { scope: "row" }, button, h("span", { class: "pair", "aria-hidden": "true" }, ...bars)),
    before,
    after,
  );

  /** @param {Candidate | null} candidate @param {number} most */
  function show(candidate, most) {
    element.hidden = candidate === null;
    if (candidate === null) return;
    if (shown?.token !== candidate.token) {
      name.textContent = visible(candidate.token.text) || "(nothing)";
      button.setAttribute("aria-label", `take ${name.textContent}`);
    }
    shown = candidate;
    bars[0].style.width = `${(100 * candidate.before) / most}%`;
    bars[1].style.width = `${(100 * candidate.after) / most}%`;
    before.textContent = percent(candidate.before);
    after.textContent = candidate.out ? `out: ${brief(candidate.out)}` : percent(candidate.after);
    element.classList.toggle("out", candidate.out !== null);
  }
  return { element, show };
}

/** A rule without its number. @param {string} rule */
function brief(rule) {
  return rule.startsWith("no repeated") ? "n-gram" : rule.replace(/ [^ ]*\d[^ ]*$/, "");
}
