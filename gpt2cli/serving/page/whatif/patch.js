/** Patching: which activations of a clean prompt restore its answer in a corrupted one. */

import { Refusal, stream } from "../api.js";
import { heatmap } from "../charts.js";
import { h, say } from "../dom.js";
import { percent, short } from "../numbers.js";
import { visible } from "../tokens.js";
import { toggled } from "../plan.js";
import { MAPS, prompts } from "./prompts.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("./prompts.js").Question} Question
 * @typedef {{id: number, text: string}} Token
 * @typedef {object} Patching
 * @property {Token[]} clean
 * @property {Token[]} corrupted
 * @property {{answer: Token, versus: Token, clean: number, corrupted: number}} answers
 * @property {number[][]} [stream] Layers × positions, as are the next two.
 * @property {number[][]} [attention]
 * @property {number[][]} [mlp]
 * @property {number[][]} [heads] Layers × heads.
 *
 * @typedef {{done: number, of: number} | {result: Patching}} Step
 * @typedef {(sentence: string, head: string | null) => void} Told
 */

const TITLES = {
  stream: "The stream into a layer, at one position",
  attention: "What attention adds, at one position",
  mlp: "What the MLP adds, at one position",
  heads: "One head, at all positions",
};

/** @param {Page} page @returns {HTMLElement} */
export function patch(page) {
  const run = h("button", { class: "main", disabled: true }, "Patch");
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Patches done" });
  const results = h("div", { class: "results" });
  /** @type {Question | null} */
  let question = null;
  /** @type {AbortController | null} */
  let running = null;
  const asked = prompts(page, (found) => {
    question = found;
    run.disabled = question === null && running === null;
  });

  async function begin() {
    running = new AbortController();
    run.textContent = "Stop";
    bar.hidden = false;
    bar.value = 0;
    results.replaceChildren();
    try {
      const steps = /** @type {AsyncGenerator<Step>} */ (
        stream("patch", /** @type {Question} */ (question), running.signal)
      );
      for await (const step of steps) {
        if ("result" in step) results.replaceChildren(...shown(step.result, page));
        else bar.value = step.done / step.of;
      }
      say("The maps are there.");
    } catch (error) {
      if (error instanceof Refusal) say(error.message, "error");
      else if (!running.signal.aborted) throw error;
    } finally {
      running = null;
      run.textContent = "Patch";
      run.disabled = question === null;
      bar.hidden = true;
    }
  }
  run.addEventListener("click", () => (running ? running.abort() : begin()));
  return h(
    "div",
    { class: "patch" },
    h(
      "p",
      { class: "soft" },
      "Two prompts that differ in a word have different answers. The corrupted one is read again " +
        "and again, each time with one activation as it was in the clean one: 100 % means that " +
        "this alone brings the clean answer back, 0 that nothing of it passes there. Vig et al. " +
        "2020 (arXiv:2004.12265), Meng et al. 2022 (arXiv:2202.05262).",
    ),
    asked,
    h("div", { class: "fields" }, run, bar),
    results,
  );
}

/** @param {Patching} found @param {Page} page @returns {HTMLElement[]} */
function shown(found, page) {
  const { answer, versus, clean, corrupted } = found.answers;
  const [a, b] = [visible(answer.text), visible(versus.text)];
  const reading = h("p", { class: "reading", role: "status" }, "Choose a cell to read it.");
  /** @type {Told} */
  const tell = (sentence, head) => {
    reading.replaceChildren(sentence, ...(head ? [" ", switching(head, page)] : []));
  };
  const difference = `the difference between ${a} and ${b}`;
  return [
    h(
      "p",
      { class: "sentence" },
      `The logit of ${a} less that of ${b} is ${short(clean)} after the clean prompt and ` +
        `${short(corrupted)} after the corrupted one; the maps say how much of this each patch restores.`,
    ),
    reading,
    h("div", { class: "maps" }, ...MAPS.flatMap((name) => map(found, name, difference, tell))),
  ];
}

/** @param {string} head @param {Page} page */
function switching(head, { store, model }) {
  const act = () => store.update(({ plan }) => ({ plan: toggled(plan, head) }));
  const disabled = model.unchangeable !== null;
  return h("button", { onclick: act, disabled }, `Switch head ${head} off or on`);
}

/**
 * @param {Patching} found
 * @param {typeof MAPS[number]} name
 * @param {string} difference
 * @param {Told} tell
 */
function map(found, name, difference, tell) {
  const shares = found[name];
  if (shares === undefined) return [];
  const first = found.clean.findIndex((token, i) => token.id !== found.corrupted[i].id);
  const isHeads = name === "heads";
  const layers = shares.map((_, i) => String(i));
  const places = found.clean.slice(first).map((token, i) => {
    const [one, other] = [visible(token.text), visible(found.corrupted[first + i].text)];
    return `${first + i} ${one === other ? one : `${one} / ${other}`}`;
  });
  const rows = isHeads ? layers : places;
  const columns = isHeads ? shares[0].map((_, i) => String(i)) : layers;
  const at = (/** @type {number} */ row, /** @type {number} */ column) =>
    isHeads ? shares[row][column] : shares[column][first + row];
  const drawn = heatmap({
    rows,
    columns,
    values: rows.flatMap((_, row) => columns.map((_, column) => at(row, column))),
    label: TITLES[name],
    palette: "diverging",
    most: 1,
    format: (share) => String(Math.round(share * 100)),
    corner: isHeads ? "layer, head" : "position, layer",
    onpick: (row, column) => {
      const where = isHeads
        ? `Head ${row}.${column}`
        : `${TITLES[name].split(",")[0].replace("a layer", `layer ${column}`)}${
            name === "stream" ? "" : ` in layer ${column}`
          } at ${rows[row]}`;
      tell(
        `${where} restores ${percent(at(row, column))} of ${difference}.`,
        isHeads ? `${row}.${column}` : null,
      );
    },
  });
  drawn.dataset.map = name;
  return [drawn];
}
