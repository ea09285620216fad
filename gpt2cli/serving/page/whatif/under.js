/** The text continued twice from one seed: by the model as it is, and by the changed one. */

import { Refusal, continued } from "../api.js";
import { h, perFrame, say } from "../dom.js";
import { pieces, visible } from "../tokens.js";
import { added, path, tokensOf, walked } from "../tree.js";
import { requestOf } from "../write/request.js";
import { emptyPlan, isEmpty, requested, same } from "../plan.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Plan} Plan
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("../types.js").Tree} Tree
 * @typedef {object} Written One of both texts while it grows.
 * @property {Token[]} tokens
 * @property {Record<string, unknown>} settings
 * @property {Record<string, unknown>} facts
 * @property {number} seed
 * @property {string | null} finish
 */

const FIRST = "Switch something off, or steer: both texts are then written from one seed.";
const OLD = "Since then something else has been changed.";

/**
 * Where two texts part: the first place at which their tokens differ, or null while none does.
 *
 * @param {readonly {id: number}[]} a
 * @param {readonly {id: number}[]} b
 * @returns {number | null}
 */
function firstDifference(a, b) {
  const place = a.findIndex((token, i) => i < b.length && token.id !== b[i].id);
  return place < 0 ? null : place;
}

/** @param {Page} page @returns {HTMLElement} */
export function under({ store }) {
  const verdict = h("p", { class: "soft", role: "status" });
  const write = h("button", { class: "main" }, "Write under it");
  const sides = [column("As it is", "plain"), column("Changed", "changed")];
  const panel = h(
    "section",
    { class: "panel under", "aria-label": "The text goes on" },
    h("div", { class: "split" }, h("h2", {}, "The text goes on"), write),
    h("div", { class: "sides" }, ...sides.map((side) => side.element)),
    verdict,
  );
  /** @type {AbortController | null} */
  let running = null;
  let judged = "";
  /** @type {Tree | null} What the text went on from. */
  let base = null;
  /** @type {Plan} */
  let plan = emptyPlan();

  const show = perFrame((/** @type {Written[]} */ both) => {
    const place = firstDifference(both[0].tokens, both[1].tokens);
    sides.forEach((side, i) => side.show(both[i], place));
  });

  /** @param {Plan} now */
  function judge(now) {
    if (running) return;
    if (!judged) verdict.textContent = isEmpty(now) ? FIRST : "";
    else verdict.textContent = judged + (same(now, plan) ? "" : ` ${OLD}`);
  }

  async function begin() {
    const { state } = store;
    say("");
    running = new AbortController();
    const { signal } = running;
    write.textContent = "Stop";
    [base, plan] = [state.tree, state.plan];
    const prompt = tokensOf(state.tree).map((token) => token.id);
    const settings = { ...state.settings, n: 1 };
    const plain = requestOf({ settings, plan: emptyPlan() });
    const both = [plain, { ...plain, plan: requested(state.plan) }].map(started);
    verdict.textContent = "";
    show(both);
    try {
      await Promise.all(both.map((one) => grow(one, prompt, signal, () => show(both))));
    } catch (error) {
      running.abort();
      if (error instanceof Refusal) say(error.message, "error");
      else if (!isAbort(error)) throw error;
    } finally {
      running = null;
      write.textContent = "Write under it";
      show(both);
      judged = compared(both, plain.seed);
      judge(store.state.plan);
    }
  }
  write.addEventListener("click", () => (running ? running.abort() : begin()));
  sides.forEach((side) =>
    side.take.addEventListener("click", () => {
      const { written } = side;
      if (written === null || base === null) return;
      const { leaf } = base;
      store.update(({ tree }) => ({ tree: grownBy(tree, leaf, written) }));
      side.take.hidden = true;
      say("The text goes on with it, in a branch of its own.");
    }),
  );
  store.subscribe(
    (state) => state,
    (state) => {
      panel.hidden = tokensOf(state.tree).length === 0;
      write.disabled = running === null && isEmpty(state.plan);
      judge(state.plan);
      if (base && !holds(state.tree, base)) sides.forEach((side) => (side.take.hidden = true));
    },
  );
  return panel;
}

/** Whether a tree still has the whole text of another. @param {Tree} tree @param {Tree} base */
function holds(tree, base) {
  return path(base).every((branch) => tree.branches[branch.id]?.tokens === branch.tokens);
}

/**
 * A tree with what was written as a branch, which is shown.
 *
 * @param {Tree} tree
 * @param {string} parent
 * @param {Written} written
 * @returns {Tree}
 */
function grownBy(tree, parent, { tokens, seed, settings, facts, finish }) {
  const origin = { seed, sample: 0, settings, facts, finish };
  const grown = added(tree, parent, tokens, origin);
  return walked(grown.tree, grown.id);
}

/** @param {Record<string, unknown>} settings @returns {Written} */
function started(settings) {
  return { tokens: [], settings, facts: {}, seed: Number(settings.seed), finish: null };
}

/**
 * @param {Written} written
 * @param {number[]} prompt
 * @param {AbortSignal} signal
 * @param {() => void} changed
 */
async function grow(written, prompt, signal, changed) {
  for await (const step of continued(prompt, written.settings, signal)) {
    if ("done" in step) {
      Object.assign(written, { seed: step.seed, facts: step.facts });
      continue;
    }
    for (const { token, finish_reason: finish } of step.news) {
      if (token) written.tokens.push(token);
      if (finish) written.finish = finish;
    }
    changed();
  }
}

/** @param {string} title @param {string} name */
function column(title, name) {
  const text = h("p", { class: "written", "data-side": name });
  const take = h("button", { hidden: true }, "Take it into the text");
  const side = {
    element: h("div", { class: "side" }, h("h3", {}, title), text, take),
    take,
    /** @type {Written | null} */
    written: null,
    /** @param {Written} written @param {number | null} place */
    show(written, place) {
      side.written = written;
      take.hidden = written.tokens.length === 0;
      const texts = pieces(written.tokens).map(readable);
      const at = place ?? texts.length;
      text.replaceChildren(
        texts.slice(0, at).join(""),
        ...(place === null ? [] : [mark(), h("span", { class: "parted" }, texts.slice(at).join(""))]),
      );
    },
  };
  return side;
}

/** Spaces and lines as they are, what cannot be seen by its sign. @param {string} text */
function readable(text) {
  return text.replace(/[^ \n]+/g, visible);
}

/** The sign where both texts part. */
function mark() {
  return h("span", { class: "mark", role: "img", "aria-label": "from here on different" }, "◆");
}

/** @param {Written[]} both @param {number} seed */
function compared([plain, changed], seed) {
  const place = firstDifference(plain.tokens, changed.tokens);
  const rule = `Same settings, same seed (${seed})`;
  if (place !== null) return `${rule}; they part at token ${place + 1}, where the ◆ stands.`;
  return plain.tokens.length === 0 ? "" : `${rule}, and the same text.`;
}

/** @param {unknown} error */
function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}
