/** Many buttons that are one stop of the tab key: arrows walk among them. */

/**
 * Let arrow keys, Home and End walk among the items of a container; the one that had the focus
 * last is the stop of the tab key.
 *
 * @param {HTMLElement} container
 * @param {string} selector What its items are.
 * @param {number | (() => number)} [columns] Items of a line, for the keys up and down; without it
 *   these walk like left and right.
 */
export function rove(container, selector, columns = 1) {
  container.addEventListener("keydown", (event) => {
    const items = /** @type {HTMLElement[]} */ ([...container.querySelectorAll(selector)]);
    const from = items.indexOf(/** @type {HTMLElement} */ (event.target));
    if (from < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const line = typeof columns === "function" ? columns() : columns;
    const there = reached(event.key, from, items.length, line);
    if (there === null) return;
    event.preventDefault();
    const to = Math.min(Math.max(there, 0), items.length - 1);
    items[to].focus();
  });
  container.addEventListener("focusin", (event) => {
    const item = /** @type {HTMLElement} */ (event.target);
    if (!item.matches(selector)) return;
    stop(container, selector, item);
  });
}

/**
 * Make one item the stop of the tab key.
 *
 * @param {HTMLElement} container
 * @param {string} selector
 * @param {HTMLElement} item
 */
export function stop(container, selector, item) {
  const before = container.querySelectorAll(`:is(${selector})[tabindex="0"]`);
  for (const other of before) other.setAttribute("tabindex", "-1");
  item.tabIndex = 0;
}

/** @param {string} key @param {number} from @param {number} size @param {number} line */
function reached(key, from, size, line) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -line, ArrowDown: line };
  if (key === "Home") return 0;
  if (key === "End") return size - 1;
  if (!(key in steps)) return null;
  const there = from + steps[/** @type {keyof typeof steps} */ (key)];
  return there < 0 || there >= size ? from : there;
}
