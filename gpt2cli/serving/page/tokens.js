/**
 * The bytes of tokens, and the text that they are together: a character may lie in several tokens.
 *
 * @typedef {import("./types.js").Named} Named
 */

const ENCODER = new TextEncoder();

/** @param {Named} token @returns {Uint8Array} */
export function bytesOf(token) {
  if (token.bytes === undefined) return ENCODER.encode(token.text);
  return Uint8Array.from(atob(token.bytes), (c) => c.charCodeAt(0));
}

/**
 * The characters of each token, in order; a character counts to the token with its first byte, so
 * a token that only continues one has none.
 *
 * @param {readonly Named[]} tokens
 * @returns {string[]}
 */
export function pieces(tokens) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** @type {string[]} */
  const found = [];
  let open = -1; // the token in which an unfinished character began
  for (const token of tokens) {
    const whole = open < 0 && token.bytes === undefined;
    const text = whole ? token.text : decoder.decode(bytesOf(token), { stream: true });
    if (open >= 0 && text) {
      const first = /** @type {string} */ (text[Symbol.iterator]().next().value);
      found[open] += first;
      found.push(text.slice(first.length));
      open = -1;
    } else {
      found.push(text);
    }
    if (!whole && open < 0 && endsOpen(token)) open = found.length - 1;
  }
  const rest = decoder.decode();
  if (rest && open >= 0) found[open] += rest;
  return found;
}

/** The text of some tokens. @param {readonly Named[]} tokens */
export function textOf(tokens) {
  return pieces(tokens).join("");
}

/** Whether a token's last character goes on in the next. @param {Named} token */
function endsOpen(token) {
  const bytes = bytesOf(token);
  let i = bytes.length - 1;
  while (i >= 0 && (bytes[i] & 0xc0) === 0x80) i -= 1;
  if (i < 0) return bytes.length > 0;
  const length = bytes[i] >= 0xf0 ? 4 : bytes[i] >= 0xe0 ? 3 : bytes[i] >= 0xc0 ? 2 : 1;
  return bytes.length - i < length;
}

/**
 * A token as it can be seen: spaces and line ends as signs, control characters by their pictures.
 *
 * @param {string} text
 */
export function visible(text) {
  return text.replace(/[\u0000-\u0020\u007f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (c) => {
    const code = /** @type {number} */ (c.codePointAt(0));
    if (c === " ") return "␣";
    if (c === "\n") return "⏎";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    return code === 127 ? "␡" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  });
}

/**
 * Each token by itself, as it can be seen; bytes that are no characters by themselves as \xe2.
 *
 * @param {readonly Named[]} tokens
 */
export function labels(tokens) {
  return tokens.map((token) => {
    if (token.bytes === undefined) return visible(token.text);
    return [...bytesOf(token)].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  });
}
