/**
 * The bytes of tokens, and the text that they are together: a character may lie in several tokens.
 *
 * @typedef {import("./types.js").Named} Named
 */

const ENCODER = new TextEncoder();
const DECODER = new TextDecoder("utf-8", { ignoreBOM: true });
const NOTHING = new Uint8Array(0);
const DRAFT = -1; // the id of text that is no token yet

/** Text that was typed and is to be read as tokens. @param {string} text @returns {Named} */
export function draft(text) {
  return { id: DRAFT, text };
}

/** Whether it is such a text, for which the server has no number. @param {Named} token */
export function isDraft({ id }) {
  return id < 0;
}

/** @param {Named} token @returns {Uint8Array} */
function bytesOf(token) {
  if (token.bytes === undefined) return ENCODER.encode(token.text);
  return Uint8Array.from(atob(token.bytes), (c) => c.charCodeAt(0));
}

/**
 * The characters of each token, in order; a character counts to the token with its first byte, so
 * a token that only continues one has none. Bytes that are no character are U+FFFD.
 *
 * @param {readonly Named[]} tokens
 * @returns {string[]}
 */
export function pieces(tokens) {
  /** @type {string[]} */
  const found = [];
  let held = NOTHING; // the first bytes of a character that is not finished yet
  let open = 0; // the token in which it began
  for (const token of tokens) {
    if (!held.length && token.bytes === undefined) {
      found.push(token.text);
      continue;
    }
    const bytes = joined(held, bytesOf(token));
    const end = bytes.length - unfinished(bytes);
    const text = DECODER.decode(bytes.subarray(0, end));
    const first = held.length ? (text[Symbol.iterator]().next().value ?? "") : "";
    if (first) found[open] += first;
    found.push(text.slice(first.length));
    if (text || !held.length) open = found.length - 1;
    held = bytes.subarray(end);
  }
  if (held.length) found[open] += DECODER.decode(held);
  return found;
}

/** The text of some tokens. @param {readonly Named[]} tokens */
export function textOf(tokens) {
  return pieces(tokens).join("");
}

/** Whether a token begins in the middle of a character. @param {Named} token */
export function startsInside(token) {
  return token.bytes !== undefined && isInside(bytesOf(token)[0]);
}

/** How many bytes at the end are the beginning of a character. @param {Uint8Array} bytes */
function unfinished(bytes) {
  const last = Math.min(3, bytes.length);
  for (let n = 1; n <= last; n += 1) {
    const at = bytes.length - n;
    if (isInside(bytes[at])) continue;
    const second = bytes[at + 1];
    return n < size(bytes[at]) && (n === 1 || canFollow(bytes[at], second)) ? n : 0;
  }
  return 0;
}

/** How many bytes a character has that begins with this one; 0 if none does. @param {number} byte */
function size(byte) {
  if (byte < 0x80) return 1;
  if (byte < 0xc2 || byte > 0xf4) return 0;
  return byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

/**
 * Neither overlong forms nor surrogates nor what lies beyond Unicode (the table of RFC 3629).
 *
 * @param {number} first
 * @param {number} second
 */
function canFollow(first, second) {
  const least = { 0xe0: 0xa0, 0xf0: 0x90 }[first] ?? 0x80;
  const most = { 0xed: 0x9f, 0xf4: 0x8f }[first] ?? 0xbf;
  return least <= second && second <= most;
}

/** @param {number} byte */
function isInside(byte) {
  return (byte & 0xc0) === 0x80;
}

/** @param {Uint8Array} a @param {Uint8Array} b */
function joined(a, b) {
  const bytes = new Uint8Array(a.length + b.length);
  bytes.set(a);
  bytes.set(b, a.length);
  return bytes;
}

/**
 * A token as it can be seen: spaces and line ends as signs, and so are characters that control
 * something, turn the direction of the text or are invisible.
 *
 * @param {string} text
 */
export function visible(text) {
  return text.replace(/[ \p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => {
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
