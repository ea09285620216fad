/**
 * The state of the page, in one place: who wants to know of a part subscribes to it, and whoever
 * changes something says how the next state follows from this one. States are never changed in
 * place, so that undo is going back to an old one.
 *
 * @typedef {import("./types.js").State} State
 */

const MOST_STEPS = 500;

/** @type {(keyof State)[]} Parts that undo brings back; what is looked at stays. */
const UNDONE = ["tree", "settings", "plan"];

/** The present state, those before it, and who wants to know of changes. */
export class Store {
  /** @param {State} state */
  constructor(state) {
    this._state = state;
    /** @type {State[]} */
    this._past = [];
    /** @type {State[]} */
    this._future = [];
    /** @type {string | null} What the last step was part of; steps of one kind are undone together. */
    this._kind = null;
    /** @type {Set<{select: (state: State) => unknown, react: (state: State) => void, last: unknown}>} */
    this._listeners = new Set();
  }

  /** The present state; not to be changed. */
  get state() {
    return this._state;
  }

  get canUndo() {
    return this._past.length > 0;
  }

  get canRedo() {
    return this._future.length > 0;
  }

  /**
   * Change the state.
   *
   * Steps that follow each other with the same `join`, such as letters of a word or tokens of a
   * stream, are undone as one. What is no step, such as what the server says of a text, is not
   * undone by itself and leaves what can be redone.
   *
   * @param {(state: State) => Partial<State>} next The parts that change.
   * @param {{join?: string | null, isStep?: boolean}} [options]
   */
  update(next, { join = null, isStep = true } = {}) {
    const before = this._state;
    const after = { ...before, ...next(before) };
    if (isStep && UNDONE.some((part) => before[part] !== after[part])) {
      if (join === null || join !== this._kind) {
        this._past.push(before);
        this._past.splice(0, this._past.length - MOST_STEPS);
      }
      this._kind = join;
      this._future = [];
    }
    this._become(after);
  }

  /** Let the next step be undone by itself, whatever it joins. */
  settle() {
    this._kind = null;
  }

  undo() {
    this._travel(this._past, this._future);
  }

  redo() {
    this._travel(this._future, this._past);
  }

  /**
   * Call `react` whenever what `select` finds is another than before; at once for the first time.
   *
   * @param {(state: State) => unknown} select
   * @param {(state: State) => void} react
   * @returns {() => void} what ends it
   */
  subscribe(select, react) {
    const listener = { select, react, last: select(this._state) };
    this._listeners.add(listener);
    react(this._state);
    return () => this._listeners.delete(listener);
  }

  /**
   * @param {State[]} from
   * @param {State[]} to
   */
  _travel(from, to) {
    const found = from.pop();
    if (!found) return;
    to.push(this._state);
    this._kind = null;
    this._become({ ...found, view: this._state.view });
  }

  /** @param {State} state */
  _become(state) {
    this._state = state;
    for (const listener of this._listeners) {
      const found = listener.select(state);
      if (found !== listener.last) {
        listener.last = found;
        listener.react(state);
      }
    }
  }
}
