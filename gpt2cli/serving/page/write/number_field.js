/** A number by a slider and by a field, which say the same. */

import { h } from "../dom.js";

const STEPS = 300; // of a slider whose steps are ratios

/**
 * @typedef {object} Scale
 * @property {number} least Of the slider; the field takes whatever is `allowed`.
 * @property {number} most
 * @property {number} step
 * @property {boolean} [logarithmic]
 * @property {(value: number) => boolean} allowed
 * @property {string} range What is allowed, in words.
 */

/**
 * @param {string} label
 * @param {string | null} describedBy The id of what explains it.
 * @param {Scale} scale
 * @param {(value: number) => void} change Called with every allowed value on the way.
 * @param {() => void} settle Called when a slider has been let go, or a field left.
 */
export function numberField(label, describedBy, scale, change, settle) {
  const names = { "aria-label": label, "aria-describedby": describedBy };
  const ends = scale.logarithmic
    ? { min: 0, max: STEPS, step: 1 }
    : { min: scale.least, max: scale.most, step: scale.step };
  const slider = h("input", { ...names, ...ends, type: "range", oninput: slid, onchange: settle });
  const field = h("input", {
    ...names,
    "aria-label": `${label}, number`,
    type: "number",
    step: "any",
    inputmode: "decimal",
    oninput: typed,
    onchange: left,
  });
  const wrong = h("p", { class: "wrong", hidden: true }, `This must be ${scale.range}.`);
  let shown = NaN;

  function slid() {
    const value = valueAt(Number(slider.value), scale);
    field.value = String(value);
    judge(true);
    say(value);
    change(value);
  }

  function typed() {
    const value = field.value === "" ? NaN : Number(field.value);
    const isAllowed = Number.isFinite(value) && scale.allowed(value);
    judge(isAllowed);
    if (isAllowed) change(value);
  }

  function left() {
    settle();
    judge(true);
    field.value = String(shown);
  }

  /** @param {boolean} isAllowed */
  function judge(isAllowed) {
    wrong.hidden = isAllowed;
    if (isAllowed) field.removeAttribute("aria-invalid");
    else field.setAttribute("aria-invalid", "true");
  }

  /** @param {number} value */
  function say(value) {
    shown = value;
    slider.setAttribute("aria-valuetext", String(value));
  }

  /** @param {number} value @param {boolean} isOff */
  function show(value, isOff) {
    slider.disabled = isOff;
    field.disabled = isOff;
    say(value);
    if (Number(field.value) !== value || field.value === "") {
      field.value = String(value);
      judge(true);
    }
    // A step that rounding undoes would hold a slider in its place.
    const isThere = valueAt(Number(slider.value), scale) === value;
    if (!isThere) slider.value = String(placeOf(value, scale));
  }
  return { slider, field, wrong, show };
}

/** @param {number} place @param {Scale} scale */
function valueAt(place, { least, most, step, logarithmic }) {
  const value = logarithmic ? least * (most / least) ** (place / STEPS) : place;
  const digits = Math.max(0, Math.ceil(-Math.log10(step)));
  return Number((Math.round(value / step) * step).toFixed(digits));
}

/** @param {number} value @param {Scale} scale */
function placeOf(value, { least, most, logarithmic }) {
  if (!logarithmic) return value;
  return (STEPS * Math.log(Math.max(value, least) / least)) / Math.log(most / least);
}
