/** The most probable next tokens before and after, side by side. */

import { Refusal, next, post } from "../api.js";
import { lineUp } from "../charts.js";
import { debounced, h } from "../dom.js";
import { percent } from "../numbers.js";
import { isDraft, visible } from "../tokens.js";
import { inWords, isEmpty, requested } from "../plan.js";
import { readOf } from "./text.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").State} State
 * @typedef {{logit: number, probability: number, rank: number}} Standing
 * @typedef {{id: number, text: string, before: Standing, after: Standing}} Moved
 * @typedef {{kl: number, tokens: Moved[]}} Effect `kl` is in bits.
 */

const QUIET = 80; // milliseconds without a change before the server is asked
const TOP = 10;
const LISTED = 12;

/** @param {Page} page @returns {HTMLElement} */
export function predictions({ store, model }) {
  const sentence = h("p", { class: "sentence", role: "status" });
  const problem = h("p", { class: "problem", role: "alert" });
  const drawn = h("div", {});
  let request = new AbortController();
  /** @type {unknown[]} The parts of the state that were asked about last. */
  let asked = [];
  const ask = debounced(async (/** @type {State} */ state) => {
    request = new AbortController();
    const { signal } = request;
    try {
      const effect = await effectOf(state, model, signal);
      if (signal.aborted) return;
      problem.textContent = "";
      sentence.textContent = inSentence(effect, inWords(state.plan));
      drawn.replaceChildren(table(effect.tokens.slice(0, LISTED), isEmpty(state.plan)));
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      problem.textContent = error.message;
      asked = []; // so that whatever comes next asks again
      sentence.textContent = "";
    } finally {
      if (!signal.aborted) panel.setAttribute("aria-busy", "false");
    }
  }, QUIET);
  const panel = h(
    "section",
    { class: "panel predictions", "aria-label": "What comes next" },
    h("h2", {}, "What comes next"),
    sentence,
    problem,
    drawn,
  );
  const perhaps = (/** @type {State} */ state) => {
    const wanted = [state.tree, state.plan];
    const tokens = readOf(state.tree, model);
    panel.hidden = tokens.length === 0;
    if (state.view.room !== "whatif" || panel.hidden || tokens.some(isDraft)) return;
    if (wanted.every((part, i) => part === asked[i])) return;
    asked = wanted;
    request.abort();
    panel.setAttribute("aria-busy", "true");
    if (!drawn.hasChildNodes()) sentence.textContent = "The model reads the text …";
    ask(state);
  };
  store.subscribe((state) => state, perhaps);
  return panel;
}

/**
 * What the plan changes; without one, both sides are the model as it is.
 *
 * @param {State} state
 * @param {Page["model"]} model
 * @param {AbortSignal} signal
 * @returns {Promise<Effect>}
 */
async function effectOf({ tree, plan }, model, signal) {
  const prompt = readOf(tree, model).map((token) => token.id);
  if (!isEmpty(plan)) {
    return post("effect", { prompt, plan: requested(plan), top: TOP }, signal);
  }
  const { candidates, log_total: total } = await next(prompt, signal);
  const tokens = candidates.slice(0, TOP).map(({ id, text, logit }, i) => {
    const standing = { logit, probability: Math.exp(logit - total), rank: i + 1 };
    return { id, text, before: standing, after: standing };
  });
  return { kl: 0, tokens };
}

/**
 * What has happened, in one sentence.
 *
 * @param {Effect} effect
 * @param {string} words The plan in words; empty for none.
 */
function inSentence({ kl, tokens }, words) {
  const first = (/** @type {"before" | "after"} */ when) =>
    tokens.reduce((best, one) => (one[when].rank < best[when].rank ? one : best));
  const [old, now] = [first("before"), first("after")];
  const name = `“${visible(old.text)}”`;
  if (!words) return `The most probable next token is ${name}, ${percent(old.before.probability)}.`;
  const change = `${percent(old.before.probability)} to ${percent(old.after.probability)}`;
  const moved = old.after.probability - old.before.probability;
  const verb = Math.abs(moved) < 0.0005 ? "stays where it was" : moved < 0 ? "falls" : "rises";
  const lead =
    old === now
      ? " and still comes first"
      : `, and “${visible(now.text)}” comes first with ${percent(now.after.probability)}`;
  const nats = kl * Math.LN2;
  return (
    `With this, ${name} ${verb}${moved && verb[0] !== "s" ? ` from ${change}` : ""}${lead}. ` +
    `Both predictions are ${nats.toFixed(3)} nats apart (KL divergence, ${kl.toFixed(3)} bits).`
  );
}

/** @param {Moved[]} tokens @param {boolean} isSame Whether nothing is changed. */
function table(tokens, isSame) {
  const most = Math.max(...tokens.flatMap((one) => [one.before.probability, one.after.probability]));
  const scale = { format: percent, to: most };
  return lineUp(
    tokens.map(({ text, before, after }) => {
      const sign = after.rank < before.rank ? "↑" : after.rank > before.rank ? "↓" : "=";
      const ranks = isSame ? String(before.rank) : `${before.rank} → ${after.rank} ${sign}`;
      const name = h("span", { class: "token" }, visible(text));
      return { name, values: [before.probability, after.probability, ranks] };
    }),
    {
      label: "The most probable next tokens, before and after",
      first: "token",
      columns: [{ name: "as it is", ...scale }, { name: "changed", ...scale }, { name: "rank" }],
    },
  );
}
