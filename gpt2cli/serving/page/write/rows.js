/** The rows of the tree of branches: one for each stretch between two forks. */

/**
 * @typedef {import("../types.js").Branch} Branch
 * @typedef {import("../types.js").Tree} Tree
 *
 * @typedef {object} Row
 * @property {string} id Its last branch, with which its text ends.
 * @property {string} first Its first branch.
 * @property {Branch[]} branches
 * @property {string} name
 * @property {string | null} parent The row before it.
 * @property {number} level From 1.
 * @property {number} place Among its siblings, from 1.
 * @property {number} size How many siblings there are.
 * @property {boolean} hasChildren
 */

/**
 * A branch that alone follows another is in its row, unless that one is named or is where the
 * shown text ends.
 *
 * @param {Tree} tree
 * @returns {Row[]} each before those that come after it
 */
export function rowsOf(tree) {
  /** @type {Map<string | null, Branch[]>} */
  const following = new Map();
  for (const branch of Object.values(tree.branches)) {
    const others = following.get(branch.parent);
    if (others) others.push(branch);
    else following.set(branch.parent, [branch]);
  }
  /** @type {Row[]} */
  const rows = [];
  const [root] = following.get(null) ?? [];
  /** @type {Pick<Row, "first" | "parent" | "level" | "place" | "size">[]} */
  const waiting = [{ first: root.id, parent: null, level: 1, place: 1, size: 1 }];
  for (let next = waiting.pop(); next; next = waiting.pop()) {
    const branches = [tree.branches[next.first]];
    let after = following.get(next.first) ?? [];
    for (let last = branches[0]; after.length === 1 && !ends(last, tree); ) {
      last = after[0];
      branches.push(last);
      after = following.get(last.id) ?? [];
    }
    const { id, name } = branches[branches.length - 1];
    rows.push({ ...next, id, name, branches, hasChildren: after.length > 0 });
    const level = next.level + 1;
    const size = after.length;
    const found = after.map((one, i) => ({ first: one.id, parent: id, level, place: i + 1, size }));
    waiting.push(...found.reverse());
  }
  return rows;
}

/** @param {Branch} branch @param {Tree} tree */
function ends({ id, name }, tree) {
  return name !== "" || id === tree.leaf;
}
