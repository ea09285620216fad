/**
 * The candidates of the next token, and what each rule does to them.
 *
 * While a slider moves nothing is asked: the logits of the place are here. The server is asked
 * where the text is another one, for a constraint, and for counts that are only about right here.
 *
 * @typedef {import("../types.js").Named} Named
 * @typedef {import("../types.js").State} State
 * @typedef {import("../sampling.js").Start} Start
 * @typedef {import("./shown.js").Shown} Shown
 *
 * @typedef {object} Place Before which token candidates are shown.
 * @property {readonly import("../types.js").Token[]} tokens Those before it.
 * @property {import("../types.js").Token | null} instead The one that is there.
 * @property {number} promptLength
 */

import { next as askNext, Refusal, stages as askStages } from "../api.js";
import { debounced, h } from "../dom.js";
import { begin, explain } from "../sampling.js";
import { choosing } from "../settings.js";
import { isDraft, textOf, visible } from "../tokens.js";
import { path, tokensOf } from "../tree.js";
import { candidateRows } from "./candidate_rows.js";
import { fromHere, fromServer } from "./shown.js";

const SHOWN = 12;
const FROM_SERVER = 50; // tokens of a stage
const QUIET = 150; // milliseconds after which the server is asked about another text
const STILL = 250; // and those after which it is asked for exact counts

/**
 * @param {import("../app.js").Page} page
 * @param {(error: Refusal | null) => void} refused Told what the server thinks of the settings.
 */
export function candidatesPanel({ store, model }, refused) {
  const where = h("p", { class: "soft where" });
  const note = h("p", { class: "soft note" });
  const rows = candidateRows(SHOWN, (token) =>
    section.dispatchEvent(new CustomEvent("take", { detail: token, bubbles: true })),
  );
  const steps = h("tbody");
  const section = h(
    "section",
    { class: "panel candidates", "aria-labelledby": "candidates-title" },
    h("h2", { id: "candidates-title" }, "Next token"),
    where,
    rows.element,
    note,
    h(
      "details",
      {},
      h("summary", {}, "Rule by rule"),
      h(
        "table",
        { class: "by-rule" },
        h("thead", {}, heading("Rule", "Tokens left")),
        steps,
      ),
    ),
  );
  /** @type {{ids: string, start: Start, read: number} | null} */
  let held = null; // the logits, and the text that they follow
  let isOpen = false; // whether only the server knows what the settings do
  let asking = new AbortController();
  let counting = new AbortController();

  /** @param {Shown} shown @param {string} [more] */
  function show(shown, more = "") {
    rows.show(shown.candidates);
    steps.replaceChildren(...shown.steps.map(stepRow));
    const last = shown.steps[shown.steps.length - 1];
    const left = `${counted(last)} of ${model.config.vocab_size.toLocaleString("en")} tokens left`;
    note.textContent = [left, ...notesOf(store.state, placeOf(store.state)), more]
      .filter(Boolean)
      .join(" · ");
    section.removeAttribute("aria-busy");
  }

  /** Show what the settings do now, and ask the server for what is not known here. */
  function compute() {
    const { settings } = store.state;
    const place = placeOf(store.state);
    counting.abort();
    isOpen = false;
    if (held === null || held.ids !== keyOf(place)) return;
    const stages = explain(held.start, settings.sampling, readOf(place, held.read, model));
    const rough = stages.some((stage) => stage.rough);
    isOpen = rough || Boolean(settings.constraint?.value);
    if (isOpen) count();
    if (settings.constraint?.value) {
      section.setAttribute("aria-busy", "true");
    } else {
      refused(null);
      show(fromHere(held.start, stages, SHOWN), rough ? "counting" : "");
    }
  }

  const count = debounced(async () => {
    if (!isOpen) return;
    counting = new AbortController();
    const { signal } = counting;
    const place = placeOf(store.state);
    const { settings } = store.state;
    try {
      const found = await askStages(idsOf(place), serverFields(settings, place), signal);
      if (signal.aborted) return;
      refused(null);
      show(fromServer(found.stages, SHOWN), "counted by the server");
    } catch (error) {
      if (!(error instanceof Refusal) || signal.aborted) return;
      refused(error);
      note.textContent = error.message;
      section.removeAttribute("aria-busy");
    }
  }, STILL);

  const ask = debounced(async () => {
    asking = new AbortController();
    const { signal } = asking;
    const place = placeOf(store.state);
    if (place.tokens.some(isDraft)) return; // which is read in a moment
    try {
      const found = await askNext(idsOf(place), signal);
      if (signal.aborted) return;
      held = { ids: keyOf(place), start: begin(found), read: found.read };
      compute();
    } catch (error) {
      if (!(error instanceof Refusal) || signal.aborted) return;
      note.textContent = error.message;
      section.removeAttribute("aria-busy");
    }
  }, QUIET);

  store.subscribe(
    (state) => keyOf(placeOf(state)),
    (state) => {
      asking.abort();
      counting.abort();
      where.replaceChildren(...whereOf(placeOf(state)));
      section.setAttribute("aria-busy", "true");
      ask();
    },
  );
  store.subscribe((state) => state.settings.sampling, compute);
  store.subscribe((state) => state.settings.constraint, compute);
  return section;
}

/** @param {State} state @returns {Place} */
function placeOf({ tree, view }) {
  const every = tokensOf(tree);
  const at = Math.min(view.token ?? every.length, every.length);
  const instead = every[at] ?? null;
  return { tokens: every.slice(0, at), instead, promptLength: beginningOf(tree, at) };
}

/**
 * Where the continuation begins that a place lies in: a text that is gone on with is a prompt.
 *
 * @param {import("../types.js").Tree} tree
 * @param {number} at
 */
function beginningOf(tree, at) {
  let first = 0;
  for (const { tokens, origin } of path(tree)) {
    if (at >= first && at < first + tokens.length) return origin === null ? at : first;
    first += tokens.length;
  }
  return at;
}

/** @param {Place} place */
function idsOf({ tokens }) {
  return tokens.map(({ id }) => id);
}

/** @param {Place} place */
function keyOf(place) {
  return `${place.promptLength}:${place.instead?.id}:${idsOf(place)}`;
}

/**
 * What the model has read: the end of a text that is too long, a document's beginning for none.
 *
 * @param {Place} place
 * @param {number} read
 * @param {import("../types.js").Model} model
 */
function readOf({ tokens, promptLength }, read, { end_of_text: id }) {
  if (tokens.length === 0 && id !== null) return { tokens: [{ id, text: "" }], promptLength: 1 };
  const cut = tokens.length - read;
  return { tokens: tokens.slice(cut), promptLength: Math.max(1, promptLength - cut) };
}

/** @param {import("../types.js").Settings} settings @param {Place} place */
function serverFields(settings, place) {
  const fields = choosing(settings);
  const xtc = settings.sampling.xtc_probability ? { xtc_probability: 1 } : {}; // as if it acted
  return { ...fields, ...xtc, prompt_length: place.promptLength, top: FROM_SERVER };
}

/** @param {Place} place */
function whereOf({ tokens, instead }) {
  const before = visible(textOf(tokens.slice(-4)));
  const after = ["after ", h("bdi", { class: "token" }, before)];
  if (tokens.length === 0) after.splice(0, 2, "at the beginning");
  if (instead === null) return after;
  return [...after, ", instead of ", h("bdi", { class: "token" }, visible(instead.text))];
}

/** What must be known to read the picture. @param {State} state @param {Place} place */
function notesOf({ settings }, { tokens, promptLength }) {
  const { sampling } = settings;
  const often = sampling.xtc_probability ?? 0;
  const counts = sampling.frequency_penalty || sampling.presence_penalty;
  return [
    sampling.temperature === 0 && "the best token is always taken",
    often > 0 && sampling.temperature !== 0 && `XTC acts ${Math.round(often * 100)} % of the time`,
    sampling.mirostat_tau != null && "mirostat as in the first step of a text",
    counts &&
      tokens.length === promptLength &&
      "frequency and presence penalties begin with the continuation's first token",
  ].filter((text) => typeof text === "string");
}

/** @param {import("./shown.js").Step} step */
function counted({ candidates, rough }) {
  return `${rough ? "about " : ""}${Math.round(candidates).toLocaleString("en")}`;
}

/** @param {import("./shown.js").Step} step */
function stepRow(step) {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, step.rule),
    h("td", { class: "number" }, counted(step)),
  );
}

/** @param {...string} names */
function heading(...names) {
  return h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)));
}
