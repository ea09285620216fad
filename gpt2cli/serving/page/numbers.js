/** Numbers as they are shown: three or four digits, with the whole number a hover away. */

const MINUS = "\u2212";

/** Four digits at most. @param {number} value */
export function short(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "none" : signed(value, "∞");
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-4) return signed(value, power(size));
  if (size >= 1000) return signed(value, size.toFixed(0));
  const digits = size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 ? 3 : 4;
  return signed(value, size.toFixed(digits));
}

/** With its sign, also where it is positive. @param {number} value */
export function added(value) {
  return value > 0 ? `+${short(value)}` : short(value);
}

/** Two decimals and a sign, for many numbers side by side. @param {number} value */
export function brief(value) {
  const digits = Math.abs(value).toFixed(2);
  if (Number(digits) === 0) return "0";
  return value > 0 ? `+${digits}` : signed(value, digits);
}

/** A share of one. @param {number} value */
export function percent(value) {
  const share = value * 100;
  if (share === 0) return "0%";
  if (Math.abs(share) < 0.001) return `${signed(share, power(Math.abs(share)))}%`;
  const digits = Math.abs(share) >= 10 ? 1 : Math.abs(share) >= 0.1 ? 2 : 3;
  return `${signed(share, Math.abs(share).toFixed(digits))}%`;
}

/** All digits that the server gives, or that a float32 has. @param {number} value */
export function exact(value) {
  return String(Number(value.toPrecision(7)));
}

/** @param {number} value @param {string} digits */
function signed(value, digits) {
  return value < 0 ? MINUS + digits : digits;
}

/** @param {number} size */
function power(size) {
  const [digits, exponent] = size.toExponential(1).split("e");
  return `${digits}e${exponent.replace("+", "").replace("-", MINUS)}`;
}
