/** Elements from JavaScript. Text is always text: nothing here reads HTML. */

/**
 * @typedef {Record<string, unknown>} Attributes `on…` are listeners, `class` and `data-…` and
 *   `aria-…` attributes; true is an empty attribute, false, null and undefined are none.
 * @typedef {Node | string | number | null | undefined | false} Child
 */

/**
 * An HTML element.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (value !== false && value !== null && value !== undefined) {
      const isEmpty = value === true && !name.startsWith("aria-"); // where true is a word
      element.setAttribute(name, isEmpty ? "" : String(value));
    }
  }
  element.append(...children.filter(isShown).map(toNode));
  return element;
}

/** @param {Child} child @returns {child is Node | string | number} */
function isShown(child) {
  return child !== null && child !== undefined && child !== false;
}

/** @param {Node | string | number} child */
function toNode(child) {
  return child instanceof Node ? child : String(child);
}

/**
 * The one element that a selector names, which must be there.
 *
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {HTMLElement}
 */
export function find(selector, root = document) {
  const found = root.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`no ${selector}`);
  return found;
}

/**
 * Tell a reader of the screen, and everyone, what has happened; an empty text takes it away.
 *
 * @param {string} text
 * @param {"status" | "error"} [kind]
 */
export function say(text, kind = "status") {
  find("#status").textContent = kind === "status" ? text : "";
  find("#error").textContent = kind === "error" ? text : "";
}

/**
 * The same function, called once things have been quiet for some milliseconds.
 *
 * @template {unknown[]} A
 * @param {(...values: A) => void} act
 * @param {number} milliseconds
 * @returns {(...values: A) => void}
 */
export function debounced(act, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => act(...values), milliseconds);
  };
}

/**
 * The same function, called once per picture of the screen with the latest values.
 *
 * @template {unknown[]} A
 * @param {(...values: A) => void} act
 * @returns {(...values: A) => void}
 */
export function perFrame(act) {
  /** @type {A | null} */
  let waiting = null;
  return (...values) => {
    if (waiting === null) {
      requestAnimationFrame(() => {
        const latest = /** @type {A} */ (waiting);
        waiting = null;
        act(...latest);
      });
    }
    waiting = values;
  };
}

/**
 * The same function, called at most once in some milliseconds, the last time after the last call.
 *
 * @param {() => void} act
 * @param {number} milliseconds
 * @returns {() => void}
 */
export function paced(act, milliseconds) {
  let isDue = false;
  let last = -Infinity;
  return () => {
    if (isDue) return;
    isDue = true;
    setTimeout(
      () => {
        isDue = false;
        last = performance.now();
        act();
      },
      Math.max(0, last + milliseconds - performance.now()),
    );
  };
}
