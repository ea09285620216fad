/**
 * What the browser keeps of a page: its state, in the storage of the browser. Each tab keeps a
 * text of its own, so that none overwrites another's; a new tab begins with the latest.
 */

import { emptyPlan } from "./plan.js";
import { fromRecord, isRecord, recordOf, unpacked } from "./record.js";
import { read, storage, write } from "./storage.js";
import { emptyTree } from "./tree.js";

/**
 * @typedef {import("./types.js").Branch} Branch
 * @typedef {import("./types.js").Model} Model
 * @typedef {import("./types.js").State} State
 * @typedef {import("./types.js").Token} Token
 * @typedef {import("./types.js").View} View
 * @typedef {{key: string, at: number}} Kept A text in the storage and when it was kept.
 */

const PREFIX = "gpt2-page ";
const TAB = "gpt2-page-tab"; // in the tab's own storage, which a reload does not empty
const MOST_TEXTS = 8; // of a model; the oldest go
const QUIET = 400; // milliseconds without a change until the state is written

/**
 * The state to begin with: that of this tab, or the latest of another, or an empty text.
 *
 * @param {Model} model
 * @returns {Promise<State>}
 */
export async function beginning(model) {
  const fresh = blank(model);
  const own = keyOf(model, tab());
  const [latest] = keptOf(model);
  const text = read("localStorage", own) ?? (latest ? read("localStorage", latest.key) : null);
  if (text === null) return fresh;
  try {
    const { view, ...record } = JSON.parse(text);
    const found = fromRecord(record, model);
    const sampling = { ...fresh.settings.sampling, ...found.settings.sampling };
    const settings = { ...found.settings, sampling };
    return { ...found, settings, view: { ...fresh.view, ...viewOf(view) } };
  } catch {
    return fresh; // written by another version of the page
  }
}

/** An empty text with the model's own settings. @param {Model} model @returns {State} */
export function blank(model) {
  return {
    tree: emptyTree(),
    settings: {
      n: 1,
      max_tokens: 60,
      seed: null,
      stop: [],
      sampling: { ...model.sampling },
      constraint: null,
    },
    plan: emptyPlan(),
    view: { room: "write", token: null, colour: "surprisal", boundaries: false },
  };
}

/**
 * What the address of the page brings along, if it does; the address is then short again.
 *
 * @param {Model} model
 * @returns {Promise<Pick<State, "tree" | "settings" | "plan"> | null>}
 */
export async function brought(model) {
  const { hash } = window.location;
  if (!isRecord(hash)) return null;
  history.replaceState(null, "", window.location.pathname + window.location.search);
  return fromRecord(await unpacked(hash), model);
}

/**
 * Keep the state whenever it changes.
 *
 * @param {import("./state.js").Store} store
 * @param {Model} model
 * @param {(problem: string) => void} [tell] Called when it cannot be kept, once.
 */
export function keep(store, model, tell = () => {}) {
  let last = store.state;
  let isTold = false;
  let mine = tab();
  /** @type {string | null} What this tab has written; another one may have taken its name. */
  let written = read("localStorage", keyOf(model, mine));
  const save = () => {
    clearTimeout(timer);
    if (store.state === last) return;
    last = store.state;
    if (read("localStorage", keyOf(model, mine)) !== written) mine = newTab();
    const text = JSON.stringify({ at: Date.now(), ...compact(last, model) });
    const isKept = put(model, keyOf(model, mine), text);
    written = isKept ? text : read("localStorage", keyOf(model, mine));
    if (!isKept && !isTold) tell("This browser does not keep the text: export it before you go.");
    isTold = !isKept;
  };
  let timer = 0;
  store.subscribe(
    (state) => state,
    () => {
      clearTimeout(timer);
      timer = window.setTimeout(save, QUIET);
    },
  );
  window.addEventListener("pagehide", save);
  document.addEventListener("visibilitychange", save);
}

/**
 * Put a text into the storage; where there is no room, the oldest others make some.
 *
 * @param {Model} model
 * @param {string} key
 * @param {string} text
 */
function put(model, key, text) {
  const others = keptOf(model).filter((kept) => kept.key !== key);
  for (const { key: old } of others.splice(MOST_TEXTS - 1)) write("localStorage", old, null);
  while (!write("localStorage", key, text)) {
    const oldest = others.pop();
    if (!oldest || !others.length) return false; // the latest text of another tab stays
    write("localStorage", oldest.key, null);
  }
  return true;
}

/** All texts of a model that are kept, the latest first. @param {Model} model @returns {Kept[]} */
function keptOf(model) {
  const place = storage("localStorage");
  const keys = place ? Object.keys(place).filter((key) => key.startsWith(keyOf(model, ""))) : [];
  return keys.map((key) => ({ key, at: stamp(key) })).sort((a, b) => b.at - a.at);
}

/** @param {string} key */
function stamp(key) {
  return Number(/^\{"at":(\d+)/.exec(read("localStorage", key) ?? "")?.[1] ?? 0);
}

/**
 * Alternatives are left out, which are asked for again when they are looked at; not those of a
 * text that was written with interventions, which a plain model would not give.
 *
 * @param {State} state
 * @param {Model} model
 */
function compact(state, model) {
  /** @type {(token: Token, branch: Branch) => Token} */
  const kept = (token, branch) => {
    if (branch.origin?.settings.plan) return token;
    return { ...token, top: undefined };
  };
  return { ...recordOf(state, model, kept), view: { ...state.view, token: null } };
}

/** What of a view can be used. @param {unknown} found @returns {Partial<View>} */
function viewOf(found) {
  const { room, colour, boundaries } = /** @type {Partial<View>} */ (found ?? {});
  return {
    ...(room && ["write", "inside", "whatif"].includes(room) ? { room } : {}),
    ...(colour && ["none", "surprisal", "rank"].includes(colour) ? { colour } : {}),
    boundaries: boundaries === true,
  };
}

/** @param {Model} model @param {string} name */
function keyOf(model, name) {
  return `${PREFIX}${encodeURIComponent(model.name)} ${name}`;
}

function tab() {
  return read("sessionStorage", TAB) ?? newTab();
}

function newTab() {
  const name = Math.random().toString(36).slice(2);
  write("sessionStorage", TAB, name);
  return name;
}
