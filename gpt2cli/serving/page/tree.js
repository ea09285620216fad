/**
 * Branches of a text: pure functions, each of which leaves its tree as it was and gives another.
 * Children stand in the order in which they came.
 *
 * @typedef {import("./types.js").Branch} Branch
 * @typedef {import("./types.js").Origin} Origin
 * @typedef {import("./types.js").Token} Token
 * @typedef {import("./types.js").Tree} Tree
 */

/** A tree with an empty text. @returns {Tree} */
export function emptyTree() {
  const id = newId();
  const root = { id, parent: null, tokens: [], name: "", origin: null };
  return { branches: { [id]: root }, leaf: id };
}

/** The branches from the root to the leaf that is shown. @param {Tree} tree @returns {Branch[]} */
export function path({ branches, leaf }) {
  const found = [];
  for (let id = /** @type {string | null} */ (leaf); id !== null; id = branches[id].parent) {
    found.unshift(branches[id]);
  }
  return found;
}

/** The tokens of the text that is shown. @param {Tree} tree @returns {Token[]} */
export function tokensOf(tree) {
  return path(tree).flatMap((branch) => branch.tokens);
}

/** @param {Tree} tree @param {string | null} id null for the root alone. @returns {Branch[]} */
export function children({ branches }, id) {
  return Object.values(branches).filter(({ parent }) => parent === id);
}

/**
 * The branches that begin where this one begins, itself among them.
 *
 * @param {Tree} tree
 * @param {string} id
 */
export function siblings(tree, id) {
  return children(tree, tree.branches[id].parent);
}

/** The branches after which nothing comes. @param {Tree} tree @returns {Branch[]} */
export function leaves({ branches }) {
  const all = Object.values(branches);
  const parents = new Set(all.map(({ parent }) => parent));
  return all.filter(({ id }) => !parents.has(id));
}

/** A branch and all that comes after it. @param {Tree} tree @param {string} id @returns {Set<string>} */
export function under({ branches }, id) {
  const found = new Set([id]);
  // Parents need not stand before their children, so this goes on until nothing is found.
  for (let before = 0; before < found.size; ) {
    before = found.size;
    for (const branch of Object.values(branches)) {
      if (branch.parent !== null && found.has(branch.parent)) found.add(branch.id);
    }
  }
  return found;
}

/** Show the text that ends with this branch. @param {Tree} tree @param {string} id @returns {Tree} */
export function walked(tree, id) {
  return { ...tree, leaf: id };
}

/**
 * Change some properties of a branch.
 *
 * @param {Tree} tree
 * @param {string} id
 * @param {Partial<Omit<Branch, "id">>} properties
 * @returns {Tree}
 */
export function changed(tree, id, properties) {
  const branch = { ...tree.branches[id], ...properties };
  return { ...tree, branches: { ...tree.branches, [id]: branch } };
}

/** @param {Tree} tree @param {string} id @param {readonly Token[]} tokens @returns {Tree} */
export function appended(tree, id, tokens) {
  return changed(tree, id, { tokens: [...tree.branches[id].tokens, ...tokens] });
}

/** @param {Tree} tree @param {string} id @param {string} name @returns {Tree} */
export function renamed(tree, id, name) {
  return changed(tree, id, { name });
}

/**
 * A new branch after `parent`; what is shown stays.
 *
 * @param {Tree} tree
 * @param {string} parent
 * @param {readonly Token[]} tokens
 * @param {Origin | null} [origin]
 * @returns {{tree: Tree, id: string}}
 */
export function added(tree, parent, tokens, origin = null) {
  const id = newId();
  const branch = { id, parent, tokens, name: "", origin };
  return { tree: { ...tree, branches: { ...tree.branches, [id]: branch } }, id };
}

/**
 * Two branches in place of one: the first `length` tokens under a new id, the others under the old
 * one, so that all that comes after it, and a text that still grows, stay what they are.
 *
 * @param {Tree} tree
 * @param {string} id
 * @param {number} length
 * @returns {{tree: Tree, id: string}} with the id of the first part
 */
export function split(tree, id, length) {
  const whole = tree.branches[id];
  const { origin } = whole;
  const head = {
    ...whole,
    id: newId(),
    tokens: whole.tokens.slice(0, length),
    name: "",
    origin: origin && { ...origin, finish: null },
  };
  const offset = (origin?.offset ?? 0) + length;
  const tail = {
    ...whole,
    parent: head.id,
    tokens: whole.tokens.slice(length),
    origin: origin && { ...origin, offset },
  };
  const entries = Object.values(tree.branches).flatMap((branch) =>
    branch === whole ? [head, tail] : [branch],
  );
  return { tree: { ...tree, branches: byId(entries) }, id: head.id };
}

/**
 * A place of the shown text as the end of a branch, which is split off where there is none.
 *
 * @param {Tree} tree
 * @param {number} place How many tokens come before it.
 * @returns {{tree: Tree, id: string}} with the branch that ends there
 */
export function cut(tree, place) {
  let left = place;
  for (const branch of path(tree)) {
    if (left === branch.tokens.length) return { tree, id: branch.id };
    if (left < branch.tokens.length) return split(tree, branch.id, left);
    left -= branch.tokens.length;
  }
  throw new RangeError(`the text has fewer than ${place} tokens`);
}

/**
 * Take a branch away with all that comes after it. Where the shown text goes with it, the one that
 * ends before the branch is shown.
 *
 * @param {Tree} tree
 * @param {string} id
 * @returns {Tree}
 */
export function pruned(tree, id) {
  const { parent } = tree.branches[id];
  if (parent === null) return emptyTree();
  const gone = under(tree, id);
  const left = Object.values(tree.branches).filter((branch) => !gone.has(branch.id));
  return merged({ branches: byId(left), leaf: gone.has(tree.leaf) ? parent : tree.leaf });
}

/**
 * Join again what was split and has no fork any more.
 *
 * @param {Tree} tree
 * @returns {Tree}
 */
export function merged(tree) {
  const joint = Object.values(tree.branches).find((child) => {
    const head = child.parent === null ? null : tree.branches[child.parent];
    if (!head || head.id === tree.leaf || head.name || !goesOn(head, child)) return false;
    return children(tree, head.id).length === 1;
  });
  if (!joint) return tree;
  const head = tree.branches[/** @type {string} */ (joint.parent)];
  const whole = {
    ...joint,
    parent: head.parent,
    tokens: [...head.tokens, ...joint.tokens],
    origin: joint.origin && { ...joint.origin, offset: head.origin?.offset },
  };
  const left = Object.values(tree.branches).filter((branch) => branch !== joint);
  const branches = byId(left.map((branch) => (branch === head ? whole : branch)));
  return merged({ ...tree, branches });
}

/**
 * Whether two branches are parts of one text that was written, or typed, in one go.
 *
 * @param {Branch} head
 * @param {Branch} child
 */
function goesOn(head, child) {
  const [a, b] = [head.origin, child.origin];
  if (!a || !b) return a === b;
  return (
    (b.offset ?? 0) > 0 &&
    b.offset === (a.offset ?? 0) + head.tokens.length &&
    a.seed === b.seed &&
    a.sample === b.sample &&
    (a.settings === b.settings || JSON.stringify(a.settings) === JSON.stringify(b.settings))
  );
}

/**
 * Put other tokens in the place of some, in all branches.
 *
 * @param {Tree} tree
 * @param {ReadonlyMap<Token, Token>} instead
 * @returns {Tree}
 */
export function exchanged(tree, instead) {
  if (!instead.size) return tree;
  const all = Object.values(tree.branches).map((branch) =>
    branch.tokens.some((token) => instead.has(token))
      ? { ...branch, tokens: branch.tokens.map((token) => instead.get(token) ?? token) }
      : branch,
  );
  return { ...tree, branches: byId(all) };
}

/** @param {Branch[]} branches @returns {Record<string, Branch>} */
function byId(branches) {
  return Object.fromEntries(branches.map((branch) => [branch.id, branch]));
}

/** An id that no other tab gives; `randomUUID` is missing where a page comes over plain HTTP. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("-");
}
