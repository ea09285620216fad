/** The browser's storage, which may be forbidden, full or missing: then nothing is kept. */

/**
 * @param {"localStorage" | "sessionStorage"} kind
 * @returns {Storage | null}
 */
export function storage(kind) {
  try {
    return window[kind];
  } catch {
    return null;
  }
}

/**
 * @param {"localStorage" | "sessionStorage"} kind
 * @param {string} key
 * @returns {string | null}
 */
export function read(kind, key) {
  try {
    return storage(kind)?.getItem(key) ?? null;
  } catch {
    return null;
  }
}

/**
 * @param {"localStorage" | "sessionStorage"} kind
 * @param {string} key
 * @param {string | null} value null takes it away.
 * @returns {boolean} whether it is kept
 */
export function write(kind, key, value) {
  try {
    const place = storage(kind);
    if (value === null) place?.removeItem(key);
    else place?.setItem(key, value);
    return place !== null;
  } catch {
    return false;
  }
}
