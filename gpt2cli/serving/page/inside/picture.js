/**
 * The way of one token through the model, a row for each block, which open step by step.
 *
 * @typedef {import("./ask.js").Maps} Maps
 * @typedef {import("./block.js").Scene} Scene
 *
 * @typedef {object} Stage A row.
 * @property {string} key
 * @property {string} name
 * @property {number} flow Length of the stream after it, as a share of the longest.
 * @property {(Node | null)[]} cells
 * @property {() => HTMLElement[]} steps
 */

import { h } from "../dom.js";
import { percent, short, exact } from "../numbers.js";
import { visible } from "../tokens.js";
import { blockSteps, embeddingSteps, outputSteps } from "./block.js";
import { HeadMaps } from "./maps.js";

const HEADINGS = ["", "attention: all heads", "attention adds", "MLP adds", "stream", "would say"];

export class Picture {
  /** @param {{n_layers: number, n_heads: number}} config */
  constructor({ n_layers: layers, n_heads: heads }) {
    this._layers = layers;
    this._maps = new HeadMaps(layers, heads, (layer, head) => this._openHead(layer, head));
    /** @type {Set<string>} Keys of the rows that are open. */
    this._open = new Set();
    /** @type {Map<number, number>} The open head of each layer. */
    this._heads = new Map();
    /** @type {Scene | null} */
    this._scene = null;
    this.element = h("ol", { class: "way", "aria-label": "From the token to the next one" });
    this.element.style.setProperty("--heads", String(heads));
    this.element.style.setProperty("--narrow", String(Math.ceil(heads / Math.ceil(heads / 8))));
    this._maps.walkIn(this.element);
  }

  /** @param {Scene} scene */
  show(scene) {
    this._scene = scene;
    this._maps.name(scene.found.attention_row, scene);
    const focused = keyOf(document.activeElement);
    const { stream } = scene.found.activations;
    const most = Math.max(...stream.map((row) => row[0]));
    const blocks = Array.from({ length: this._layers }, (_, layer) => this._block(layer, most));
    this.element.replaceChildren(
      heading(),
      this._stage(this._embedding(most)),
      ...blocks.map((block) => this._stage(block)),
      this._stage(this._output()),
    );
    if (focused) this._row(focused)?.querySelector("button")?.focus();
  }

  /** @param {Maps | null} maps null while they are not known. */
  draw(maps) {
    this._maps.draw(maps);
  }

  /**
   * Open a row, and perhaps a head, as from elsewhere.
   *
   * @param {number | null} layer null is the embeddings.
   * @param {number | null} head
   */
  open(layer, head) {
    const key = layer === null ? "embedding" : String(layer);
    if (layer !== null && head !== null) {
      this._openHead(layer, head);
    } else {
      this._open.add(key);
      this._refresh(key);
      this._row(key)?.querySelector("button")?.focus({ preventScroll: true });
    }
    this._row(key)?.scrollIntoView({ block: "start" });
  }

  /** @param {number} layer @param {number} head */
  _openHead(layer, head) {
    this._heads.set(layer, head);
    this._maps.choose(layer, head);
    this._open.add(String(layer));
    this._refresh(String(layer));
    const title = this._row(String(layer))?.querySelector("h4");
    title?.focus();
  }

  /** @param {string} key */
  _row(key) {
    return this.element.querySelector(`.stage[data-key="${key}"]`);
  }

  /** Make the panel of a row again. @param {string} key */
  _refresh(key) {
    const scene = /** @type {Scene} */ (this._scene);
    const row = /** @type {HTMLElement} */ (this._row(key));
    const button = /** @type {HTMLElement} */ (row.querySelector(".opens"));
    const body = /** @type {HTMLElement} */ (row.querySelector(".steps"));
    const isOpen = this._open.has(key);
    row.classList.toggle("open", isOpen);
    button.setAttribute("aria-expanded", String(isOpen));
    body.hidden = !isOpen;
    body.replaceChildren(...(isOpen ? this._steps(key, scene) : []));
  }

  /** @param {string} key @param {Scene} scene */
  _steps(key, scene) {
    if (key === "embedding") return embeddingSteps(scene);
    if (key === "output") return outputSteps(scene);
    const layer = Number(key);
    const onhead = (/** @type {number} */ head) => this._openHead(layer, head);
    return blockSteps(scene, layer, { head: this._heads.get(layer), onhead });
  }

  /** @param {Omit<Stage, "steps">} stage */
  _stage({ key, name, flow, cells }) {
    const id = `stage-${key}`;
    const scene = /** @type {Scene} */ (this._scene);
    const isOpen = this._open.has(key);
    const toggle = () => {
      if (!this._open.delete(key)) this._open.add(key);
      this._refresh(key);
    };
    const attributes = { class: "opens", "aria-expanded": String(isOpen), "aria-controls": id };
    const steps = isOpen ? this._steps(key, scene) : [];
    const row = h(
      "li",
      { class: isOpen ? "stage open" : "stage", "data-key": key },
      h("div", { class: "line" }, h("button", { ...attributes, onclick: toggle }, name), ...cells),
      h("div", { id, class: "steps", hidden: !isOpen }, ...steps),
    );
    row.style.setProperty("--flow", String(flow));
    return row;
  }

  /** @param {number} most */
  _embedding(most) {
    const { found, position, labels } = /** @type {Scene} */ (this._scene);
    const { token, position: place } = found.embedding;
    const length = found.activations.stream[0][0];
    const cells = [
      h("span", { class: "what" }, `${labels[position]} at position ${position}`),
      meter("token", token, most),
      meter("position", place, most),
      meter("stream", length, most),
      says(found, 0),
    ];
    return { key: "embedding", name: "embeddings", flow: length / most, cells };
  }

  /** @param {number} layer @param {number} most */
  _block(layer, most) {
    const { found } = /** @type {Scene} */ (this._scene);
    const { attention, feed_forward, stream } = found.activations;
    const cells = [
      this._maps.strip(layer),
      meter("attention adds", attention[layer][0], most),
      meter("MLP adds", feed_forward[layer][0], most),
      meter("stream", stream[layer + 1][0], most),
      says(found, layer + 1),
    ];
    return { key: String(layer), name: `block ${layer}`, flow: stream[layer + 1][0] / most, cells };
  }

  _output() {
    const { found } = /** @type {Scene} */ (this._scene);
    const best = found.next.slice(0, 5).map(({ text, probability }) => {
      const chip = h("span", { class: "chip" }, h("b", { class: "token" }, visible(text)), " ");
      chip.append(percent(probability));
      return chip;
    });
    const cells = [h("span", { class: "best" }, ...best)];
    return { key: "output", name: "final norm, probabilities", flow: 0, cells };
  }
}

/** @param {Element | null} element */
function keyOf(element) {
  const row = element?.closest(".stage");
  return row instanceof HTMLElement && !element?.closest(".tile") ? row.dataset.key : undefined;
}

function heading() {
  const cells = HEADINGS.map((text) => h("span", {}, text));
  return h("li", { class: "headings soft", "aria-hidden": "true" }, ...cells);
}

/** @param {number} share Of its place. */
function bar(share) {
  const element = h("span", { class: "bar", "aria-hidden": "true" });
  element.style.setProperty("--start", "0");
  element.style.setProperty("--size", String(share));
  return element;
}

/** A length as a bar. @param {string} label @param {number} value @param {number} most */
function meter(label, value, most) {
  return h(
    "span",
    { class: "meter", title: `${label}: length ${exact(value)}` },
    h("span", { class: "label soft" }, label, " "),
    h("span", { class: "number", "data-value": value }, short(value)),
    bar(value / most),
  );
}

/** What the logit lens says. @param {Scene["found"]} found @param {number} index */
function says({ lens }, index) {
  const text = visible(/** @type {string[]} */ (lens.texts[index].at(-1))[0]);
  const share = /** @type {number[]} */ (lens.probabilities[index].at(-1))[0];
  return h(
    "span",
    { class: "meter says", title: `The logit lens: ${exact(share)}` },
    h("span", { class: "label soft" }, "would say "),
    h("b", { class: "token" }, text),
    h("span", { class: "number", "data-value": share }, percent(share)),
    bar(share),
  );
}
