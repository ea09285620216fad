/**
 * The logit lens by layer and position: what each place would say next if the model stopped there.
 *
 * @typedef {import("./ask.js").Lens} Lens
 */

import { h } from "../dom.js";
import { exact, percent } from "../numbers.js";
import { rove } from "../roving.js";
import { visible } from "../tokens.js";
import { lesson } from "./lessons.js";

/** The section, which asks for its numbers when it comes into sight. */
export class Lenses {
  /** @param {(layer: number | null, position: number) => void} onpick */
  constructor(onpick) {
    this._onpick = onpick;
    this._position = 0;
    /** @type {(() => Promise<void>) | null} */
    this._load = null;
    this._isSeen = false;
    this._box = h("div", {}, h("p", { class: "soft" }, "…"));
    this.element = h("section", { class: "lenses panel" }, h("h2", {}, "Logit lens"));
    this.element.append(lesson("lens"), this._box);
    new IntersectionObserver((entries) => {
      this._isSeen = entries.some((entry) => entry.isIntersecting);
      this._begin();
    }).observe(this.element);
  }

  /** @param {() => Promise<void>} load Asks, and calls `show`. */
  await(load) {
    this._load = load;
    this._box.setAttribute("aria-busy", "true");
    this._begin();
  }

  /** @param {Lens & {first: number}} lens @param {readonly string[]} labels */
  show(lens, labels) {
    this._box.replaceChildren(lensTable(lens, labels, this._onpick));
    this._box.removeAttribute("aria-busy");
    markColumn(this._box, this._position);
  }

  /** Mark the column of the token that is looked at. @param {number} position */
  mark(position) {
    this._position = position;
    markColumn(this._box, position);
  }

  _begin() {
    const load = this._load;
    if (!load || !this._isSeen) return;
    this._load = null;
    load().catch((error) => {
      if (error.name === "AbortError") return;
      this._box.removeAttribute("aria-busy");
      this._box.replaceChildren(h("p", { class: "bad" }, error.message));
    });
  }
}

/**
 * @param {Lens & {first: number}} lens
 * @param {readonly string[]} labels Of all tokens of the text.
 * @param {(layer: number | null, position: number) => void} onpick null is the embeddings.
 */
function lensTable(lens, labels, onpick) {
  const { first, texts, probabilities } = lens;
  const shown = labels.slice(first, first + texts[0].length);
  const told = h("output", { class: "told" }, "The pointer or the arrow keys tell the three best.");
  const label = "What each layer would say after each token";
  const table = h(
    "table",
    { class: "lens" },
    h("caption", { class: "unseen" }, label),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "after"), ...shown.map(heading))),
    h("tbody", {}, ...texts.map(row)),
  );
  rove(table, "td button", shown.length);
  table.addEventListener("focusin", tell);
  table.addEventListener("pointerover", tell);
  table.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place) onpick(place[0] === 0 ? null : place[0] - 1, first + place[1]);
  });
  const button = table.querySelector("td button");
  if (button instanceof HTMLElement) button.tabIndex = 0;
  const note =
    first > 0 &&
    h("p", { class: "soft" }, `The last ${shown.length} of ${labels.length} tokens are shown.`);
  return h("div", {}, note, h("div", { class: "scrolled" }, table), told);

  /** @param {string} text @param {number} j */
  function heading(text, j) {
    return h("th", { scope: "col", class: "token", "data-position": first + j }, text);
  }

  /** @param {string[][]} places @param {number} i */
  function row(places, i) {
    return h("tr", {}, h("th", { scope: "row" }, name(i)), ...places.map((_, j) => cell(i, j)));
  }

  /** @param {number} i @param {number} j */
  function cell(i, j) {
    const share = probabilities[i][j][0];
    const text = visible(texts[i][j][0]);
    const place = { "data-place": `${i},${j}`, "data-value": share };
    const said = `${text} ${percent(share)}`;
    const attributes = { class: "plain token", tabindex: -1, "aria-label": said, ...place };
    const found = h("td", { "data-position": first + j }, h("button", attributes, text));
    found.style.setProperty("--share", String(share));
    return found;
  }

  /** @param {Event} event @returns {[number, number] | null} */
  function placeOf(event) {
    const target = event.target instanceof Element ? event.target.closest("[data-place]") : null;
    if (!(target instanceof HTMLElement)) return null;
    return /** @type {[number, number]} */ (target.dataset.place?.split(",").map(Number));
  }

  /** @param {Event} event */
  function tell(event) {
    const place = placeOf(event);
    if (!place) return;
    const [i, j] = place;
    const best = texts[i][j].map((text, k) => `${visible(text)} ${exact(probabilities[i][j][k])}`);
    told.textContent = `${name(i)}, after ${first + j} ${shown[j]}: ${best.join(" · ")}`;
  }
}

/** @param {HTMLElement} box @param {number} position */
function markColumn(box, position) {
  for (const cell of box.querySelectorAll("[data-position]")) {
    const isHere = /** @type {HTMLElement} */ (cell).dataset.position === String(position);
    cell.classList.toggle("here", isHere);
    if (isHere && cell.tagName === "TH") cell.setAttribute("aria-current", "true");
    else cell.removeAttribute("aria-current");
  }
}

/** @param {number} i */
function name(i) {
  return i === 0 ? "embeddings" : `block ${i - 1}`;
}
