/** The question of a patching: two prompts and two answers, judged while they are typed. */

import { Refusal, score } from "../api.js";
import { debounced, h } from "../dom.js";
import { visible } from "../tokens.js";

/**
 * @typedef {import("../app.js").Page} Page
 * @typedef {import("../types.js").Token} Token
 * @typedef {object} Question
 * @property {number[]} clean
 * @property {number[]} corrupted
 * @property {number} [answer] Without it, what is most probable after the clean prompt.
 * @property {number} [versus]
 * @property {string[]} maps
 */

export const MAPS = /** @type {const} */ (["stream", "attention", "mlp", "heads"]);
const FIELDS = /** @type {const} */ ([
  ["clean", "Clean prompt", "I told the woman that"],
  ["corrupted", "Corrupted prompt", "I told the man that"],
  ["answer", "Answer to the clean one", " she"],
  ["versus", "Answer to the corrupted one", " he"],
]);
const QUIET = 250; // milliseconds

/**
 * What keeps two prompts from being compared, in one sentence, or null.
 *
 * @param {readonly {id: number}[]} clean
 * @param {readonly {id: number}[]} corrupted
 */
export function refusal(clean, corrupted) {
  if (clean.length === 0 || corrupted.length === 0) return "Both prompts need a text.";
  if (clean.length !== corrupted.length) {
    return (
      "Both prompts must have as many tokens: the clean one has " +
      `${clean.length}, the corrupted one ${corrupted.length}.`
    );
  }
  if (clean.every((token, i) => token.id === corrupted[i].id)) {
    return "Both prompts are the same, so there is nothing to restore.";
  }
  return null;
}

/**
 * What keeps a text from being an answer, or null.
 *
 * @param {readonly {text: string}[]} tokens
 */
function unanswerable(tokens) {
  if (tokens.length < 2) return null;
  const shown = tokens.map((token) => visible(token.text)).join(" | ");
  return `An answer is one token, and this is ${tokens.length}: ${shown}.`;
}

/**
 * How often the corrupted prompt is read.
 *
 * @param {Question} question
 * @param {{n_layers: number, n_heads: number}} config
 */
function readings({ clean, corrupted, maps }, { n_layers: layers, n_heads: heads }) {
  const places = clean.length - clean.findIndex((id, i) => id !== corrupted[i]);
  return maps.reduce((sum, name) => sum + layers * (name === "heads" ? heads : places), 0);
}

/**
 * @param {Page} page
 * @param {(question: Question | null) => void} found Told of each question that can be asked, and
 *   of null while there is none.
 * @returns {HTMLElement}
 */
export function prompts({ store, model }, found) {
  const fields = FIELDS.map(([name, , value]) =>
    h("input", { name, value, autocomplete: "off", spellcheck: "false", class: "token" }),
  );
  const notes = FIELDS.map(() => h("p", { class: "note" }));
  const boxes = MAPS.map((name) =>
    h("input", { type: "checkbox", checked: true, value: name, onchange: () => judge() }),
  );
  const verdict = h("p", { class: "problem", role: "status" });
  const pairs = h("ol", { class: "pairs", "aria-label": "Tokens of both prompts", start: 0 });
  let request = new AbortController();
  /** @type {Token[][]} */
  let tokens = [];

  const read = debounced(async () => {
    request.abort();
    request = new AbortController();
    const { signal } = request;
    try {
      const all = await Promise.all(fields.map((field) => tokensIn(field.value, signal)));
      if (signal.aborted) return;
      tokens = all;
      judge();
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      verdict.textContent = error.message;
    }
  }, QUIET);

  function judge() {
    if (tokens.length === 0) return; // nothing has been read yet
    const [clean, corrupted, answer, versus] = tokens;
    const wrong = [answer, versus].map(unanswerable);
    notes.forEach((note, i) => {
      note.replaceChildren(...(i < 2 ? [] : hints(fields[i], tokens[i], wrong[i - 2], read)));
    });
    pairs.replaceChildren(...paired(clean, corrupted));
    const question = {
      clean: clean.map((token) => token.id),
      corrupted: corrupted.map((token) => token.id),
      answer: answer[0]?.id,
      versus: versus[0]?.id,
      maps: boxes.filter((box) => box.checked).map((box) => box.value),
    };
    const why = refusal(clean, corrupted) ?? tooMany(question);
    verdict.textContent = why ?? "";
    found(why === null && wrong.every((one) => one === null) ? question : null);
  }

  /** @param {Question} question */
  function tooMany(question) {
    if (question.maps.length === 0) return "Choose at least one map.";
    const count = readings(question, model.config);
    const most = model.limits.patches;
    if (count <= most) return null;
    return `This would read the prompt ${count} times, and the most are ${most}: choose fewer maps.`;
  }

  const element = h(
    "div",
    {
      class: "prompts",
      oninput: (/** @type {Event} */ event) => {
        if (/** @type {HTMLInputElement} */ (event.target).type === "checkbox") return;
        found(null);
        read();
      },
    },
    ...FIELDS.map(([, label], i) => h("div", {}, h("label", {}, label, fields[i]), notes[i])),
    h(
      "fieldset",
      {},
      h("legend", {}, "Maps"),
      ...MAPS.map((name, i) => h("label", {}, boxes[i], ` ${name === "mlp" ? "MLP" : name}`)),
    ),
    pairs,
    verdict,
  );
  store.subscribe(
    (state) => state.view.room,
    ({ view }) => {
      if (view.room === "whatif" && tokens.length === 0) read();
    },
  );
  return element;
}

/** @param {string} text @param {AbortSignal} signal @returns {Promise<Token[]>} */
async function tokensIn(text, signal) {
  return text === "" ? [] : (await score(text, signal)).tokens;
}

/**
 * What helps with an answer: that it is several tokens, and that most words begin with a space.
 *
 * @param {HTMLInputElement} field
 * @param {Token[]} tokens
 * @param {string | null} wrong
 * @param {() => void} read
 */
function hints(field, tokens, wrong, read) {
  if (tokens.length === 0) return ["Empty: what the model finds most probable."];
  const space = () => {
    field.value = ` ${field.value}`;
    field.focus();
    read();
  };
  const isBare = !/^\s/.test(field.value);
  return [
    wrong ?? `One token: ${visible(tokens[0].text)}`,
    ...(isBare ? [" ", h("button", { onclick: space }, "Begin it with a space")] : []),
  ];
}

/** Both prompts token by token. @param {Token[]} clean @param {Token[]} corrupted */
function paired(clean, corrupted) {
  const length = Math.max(clean.length, corrupted.length);
  return Array.from({ length }, (_, i) => {
    const [one, other] = [clean[i], corrupted[i]].map((token) => (token ? visible(token.text) : "∅"));
    const differs = clean[i]?.id !== corrupted[i]?.id;
    return h(
      "li",
      { class: differs ? "differs" : null },
      h("span", { class: "token" }, one),
      differs && h("span", { class: "token" }, `≠ ${other}`),
    );
  });
}
