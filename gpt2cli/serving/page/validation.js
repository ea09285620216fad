/**
 * Whether a record has the shape that the page relies on. It may come from anywhere, so everything
 * is looked at, what is unknown is left out, and branches get new ids.
 *
 * @typedef {import("./types.js").Branch} Branch
 * @typedef {import("./types.js").Origin} Origin
 * @typedef {import("./types.js").Plan} Plan
 * @typedef {import("./types.js").Settings} Settings
 * @typedef {import("./types.js").State} State
 * @typedef {import("./types.js").Token} Token
 * @typedef {import("./types.js").Tree} Tree
 *
 * @typedef {Record<string, unknown>} Fields
 */

const MOST_BRANCHES = 20_000;
const LONGEST_NAME = 200;
const KINDS = ["regex", "choice", "json_schema"];

/**
 * @param {unknown} record
 * @returns {{state: Pick<State, "tree" | "settings" | "plan">, vocabulary: number | null,
 *   most: number}} `vocabulary` is the size that the record names, `most` its greatest id.
 */
export function inspected(record) {
  need(isFields(record) && record.format === "gpt2-page", "this is no text of this page");
  need(record.version === 1, `this text has version ${record.version}; this page reads version 1`);
  const tree = treeOf(record.tree);
  const size = isFields(record.model) ? record.model.vocab_size : null;
  const tokens = Object.values(tree.branches).flatMap((branch) => branch.tokens);
  return {
    state: { tree, settings: settingsOf(record.settings), plan: planOf(record.plan) },
    vocabulary: isCount(size) ? size : null,
    most: tokens.reduce((most, { id }) => Math.max(most, id), -1),
  };
}

/** @param {unknown} found @returns {Tree} */
function treeOf(found) {
  need(isFields(found) && isFields(found.branches), "this text has no tree of branches");
  const named = Object.entries(found.branches);
  need(named.length <= MOST_BRANCHES, `this text has more than ${MOST_BRANCHES} branches`);
  const stamp = Math.random().toString(36).slice(2);
  const ids = new Map(named.map(([id], i) => [id, `${stamp}-${i}`]));
  const branches = named.map(([id, branch]) => branchOf(branch, ids.get(id) ?? "", ids));
  const byId = Object.fromEntries(branches.map((branch) => [branch.id, branch]));
  const roots = branches.filter(({ parent }) => parent === null);
  need(roots.length === 1, `a tree has one beginning, this one has ${roots.length}`);
  const reached = new Set(roots.map(({ id }) => id));
  for (const branch of branches) {
    const way = [];
    for (let at = branch; !reached.has(at.id); at = byId[/** @type {string} */ (at.parent)]) {
      need(way.length <= branches.length, "this text has branches that come after themselves");
      way.push(at.id);
    }
    for (const id of way) reached.add(id);
  }
  const leaf = ids.get(String(found.leaf));
  need(leaf !== undefined, "this text does not say which branch is shown");
  return { branches: byId, leaf };
}

/**
 * @param {unknown} found
 * @param {string} id
 * @param {Map<string, string>} ids
 * @returns {Branch}
 */
function branchOf(found, id, ids) {
  need(isFields(found) && Array.isArray(found.tokens), "this text has a branch without tokens");
  const parent = found.parent === null ? null : ids.get(String(found.parent));
  need(parent !== undefined, "this text has a branch after one that is not there");
  return {
    id,
    parent,
    tokens: found.tokens.map(tokenOf),
    name: typeof found.name === "string" ? found.name.slice(0, LONGEST_NAME) : "",
    origin: originOf(found.origin ?? null),
  };
}

/** @param {unknown} found @returns {Token} */
function tokenOf(found) {
  need(
    isFields(found) && Number.isSafeInteger(found.id) && typeof found.text === "string",
    "this text has a token without an id or a text",
  );
  const { id, text, bytes, logprob, rank, top } = found;
  /** @type {Token} */
  const token = { id: Number(id), text: wellFormed(text) };
  if (bytes !== undefined) {
    need(isBase64(bytes), "this text has a token whose bytes are no base64");
    token.bytes = bytes;
  }
  if (isNumber(logprob) && isCount(rank)) Object.assign(token, { logprob, rank });
  if (Array.isArray(top)) {
    token.top = top.map((other) => {
      need(isFields(other) && isNumber(other.logprob), "this text has an alternative of no weight");
      return { ...tokenOf(other), logprob: other.logprob };
    });
  }
  return token;
}

/** @param {unknown} found @returns {Origin | null} */
function originOf(found) {
  if (found === null) return null;
  need(
    isFields(found) && isCount(found.seed) && isCount(found.sample),
    "this text has a continuation without a seed",
  );
  const { seed, sample, settings, facts, finish, offset } = found;
  return {
    seed,
    sample,
    settings: isFields(settings) ? settings : {},
    facts: isFields(facts) ? facts : {},
    finish: typeof finish === "string" ? finish : null,
    ...(isCount(offset) ? { offset } : {}),
  };
}

/** @param {unknown} found @returns {Settings} */
function settingsOf(found) {
  need(isFields(found), "this text has no settings");
  const { n, max_tokens, seed, stop, sampling, constraint } = found;
  need(isCount(n) && isCount(max_tokens) && n > 0, "this text has settings without n or max_tokens");
  need(seed === null || isCount(seed), "this text has settings with a seed that is no number");
  need(isTexts(stop), "this text has settings whose stops are no texts");
  need(
    isFields(sampling) && Object.values(sampling).every((x) => x === null || isNumber(x)),
    "this text has a setting of sampling that is no number",
  );
  return {
    n,
    max_tokens,
    seed,
    stop,
    sampling: /** @type {Settings["sampling"]} */ (sampling),
    constraint: constraintOf(constraint ?? null),
  };
}

/** @param {unknown} found @returns {Settings["constraint"]} */
function constraintOf(found) {
  if (found === null) return null;
  need(
    isFields(found) && KINDS.includes(String(found.kind)) && typeof found.value === "string",
    "this text has a constraint of no known kind",
  );
  return /** @type {Settings["constraint"]} */ ({ kind: found.kind, value: found.value });
}

/** @param {unknown} found @returns {Plan} */
function planOf(found) {
  need(isFields(found) && isTexts(found.ablate), "this text has no plan of interventions");
  const { ablate, ablate_with, reference, steer } = found;
  need(Array.isArray(steer), "this text has a plan without its list of directions");
  return {
    ablate,
    ablate_with: ablate_with === "mean" ? "mean" : "zero",
    reference: typeof reference === "string" ? reference : null,
    steer: steer.map((one) => {
      const { towards, away, layer, strength, first } = isFields(one) ? one : {};
      need(
        isTexts([towards, away]) && isCount(layer) && isNumber(strength) && isCount(first),
        "this text has a direction that cannot be followed",
      );
      return { towards: String(towards), away: String(away), layer, strength, first };
    }),
  };
}

/** @param {unknown} condition @param {string} otherwise @returns {asserts condition} */
function need(condition, otherwise) {
  if (!condition) throw new Error(otherwise);
}

/** @param {unknown} found @returns {found is Fields} */
function isFields(found) {
  return typeof found === "object" && found !== null && !Array.isArray(found);
}

/** @param {unknown} found @returns {found is number} */
function isNumber(found) {
  return typeof found === "number" && Number.isFinite(found);
}

/** @param {unknown} found @returns {found is number} */
function isCount(found) {
  return isNumber(found) && Number.isSafeInteger(found) && found >= 0;
}

/** @param {unknown} found @returns {found is string[]} */
function isTexts(found) {
  return Array.isArray(found) && found.every((one) => typeof one === "string");
}

/** @param {unknown} found @returns {found is string} */
function isBase64(found) {
  return typeof found === "string" && /^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(found);
}

/** Halves of surrogate pairs, which JSON may carry, are no characters. @param {string} text */
function wellFormed(text) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new TextEncoder().encode(text));
}
