/**
 * The room "look inside": the way of one token of the text through the model. First the picture is
 * asked for, then the maps of all heads, and the logit lens when it comes into sight.
 *
 * @typedef {import("../types.js").State} State
 * @typedef {import("../types.js").Token} Token
 * @typedef {import("./ask.js").Inspection} Inspection
 * @typedef {import("./ask.js").Text} Text
 */

import { h } from "../dom.js";
import { percent } from "../numbers.js";
import { isEmpty, requested } from "../plan.js";
import { isDraft, labels } from "../tokens.js";
import { tokensOf } from "../tree.js";
import * as ask from "./ask.js";
import { Lenses } from "./lenses.js";
import { lesson } from "./lessons.js";
import { Logit } from "./logit.js";
import { Picture } from "./picture.js";
import { Strip } from "./strip.js";
import { summary } from "./summary.js";

/** @typedef {{tokens: readonly Token[], labels: string[], text: Text, position: number}} Looked */

class Room {
  /** @param {HTMLElement} room @param {import("../app.js").Page} page */
  constructor(room, { store, model }) {
    this._store = store;
    this._context = model.config.context_length;
    /** @type {Looked | null} */
    this._looked = null;
    /** @type {AbortController} Ends what was asked of the present text and plan. */
    this._reading = new AbortController();
    /** @type {AbortController} Ends what was asked of the present token. */
    this._token = new AbortController();
    this._notice = h("div", { class: "notices" });
    this._strip = new Strip((index) => this._pick(index));
    const live = { class: "headline", "aria-live": "polite" };
    this._headline = h("p", live, "Reading the text …");
    this._error = h("p", { class: "bad", role: "alert" });
    this._picture = new Picture(model.config);
    this._note = h("p", { class: "soft" });
    /** @type {Inspection | null} */
    this._found = null;
    this._summary = summary(() => this._found);
    this._lenses = new Lenses((layer, position) => this._goTo(layer, position));
    this._logit = new Logit({
      onask: () => this._inspect(),
      onpick: (layer, head) => this._picture.open(layer, head),
    });
    const top = [this._strip.element, this._error, this._headline];
    this._body = h("div", { class: "inside" }, ...top, ...this._sections());
    room.append(this._notice, this._body);
    store.subscribe(
      (state) => (state.view.room === "inside" ? state : null),
      (state) => state.view.room === "inside" && this._look(state),
    );
  }

  _sections() {
    const title = h("h2", {}, "From a token to the next one");
    const picture = h("section", { class: "picture panel" }, title, lesson("way"));
    picture.append(this._picture.element, this._note, this._summary.element);
    return [picture, this._lenses.element, this._logit.element];
  }

  /** @param {number} index Of the tokens that are shown. */
  _pick(index) {
    performance.mark("inside: asked");
    const token = index + this._left(this._store.state);
    this._store.update(({ view }) => ({ view: { ...view, token } }));
  }

  /** Tokens at the beginning that no longer fit the model's context. @param {State} state */
  _left(state) {
    return Math.max(0, tokensOf(state.tree).length - this._context);
  }

  /** @param {State} state */
  _look(state) {
    const left = this._left(state);
    const tokens = tokensOf(state.tree).slice(left);
    this._body.hidden = tokens.length === 0;
    this._notice.replaceChildren(...this._notices(left, tokens.length));
    if (tokens.length === 0 || tokens.some(isDraft)) return;
    const { plan, view } = state;
    const position = Math.min(Math.max((view.token ?? Infinity) - left, 0), tokens.length - 1);
    const prompt = tokens.map(({ id }) => id);
    const text = isEmpty(plan) ? { prompt } : { prompt, plan: requested(plan) };
    const before = this._looked;
    const isOther = !before || JSON.stringify(before.text) !== JSON.stringify(text);
    if (!isOther && before.position === position) return;
    const named = isOther ? labels(tokens) : before.labels;
    this._looked = { tokens, labels: named, text: isOther ? text : before.text, position };
    if (isOther) this._strip.show(tokens);
    this._strip.choose(position);
    this._lenses.mark(position);
    if (isOther) this._read();
    else this._inspect();
  }

  /** Begin with a text, or a plan, that is new. */
  _read() {
    this._reading.abort();
    this._reading = new AbortController();
    const { text, labels: named } = /** @type {Looked} */ (this._looked);
    const { signal } = this._reading;
    this._picture.draw(null);
    const picture = this._inspect();
    const maps = picture.then(() => ask.attention(text, signal));
    maps.then((found) => this._draw(found)).catch((error) => this._fail(error));
    this._lenses.await(async () => {
      await maps.catch(() => {});
      const found = await ask.lens(text, signal);
      this._lenses.show(found, named);
    });
  }

  /** Ask what happens to the token, and show it. */
  async _inspect() {
    this._token.abort();
    this._token = new AbortController();
    const looked = /** @type {Looked} */ (this._looked);
    const { signal } = this._token;
    this._body.setAttribute("aria-busy", "true");
    performance.mark("inside: sent");
    try {
      const found = await ask.inspect(looked.text, looked.position, this._logit.asked, signal);
      performance.measure("inside: server", "inside: sent");
      this._show(found, looked, signal);
    } catch (error) {
      this._fail(/** @type {Error} */ (error));
    }
  }

  /** @param {Error} error */
  _fail(error) {
    if (error.name === "AbortError") return;
    this._body.removeAttribute("aria-busy");
    if (!this._logit.refuse(error)) this._error.textContent = error.message;
  }

  /** @param {Inspection} found @param {Looked} looked @param {AbortSignal} signal */
  _show(found, looked, signal) {
    const { labels: named, position, text, tokens } = looked;
    const begin = performance.now();
    this._error.textContent = "";
    this._found = found;
    this._picture.show({
      found,
      position,
      labels: named,
      ask: (layer, head) => ask.head(text, { layer, head, position }, signal),
    });
    this._logit.show(found, tokens[position + 1]);
    this._summary.draw();
    this._headline.replaceChildren(...headline(found, named, position));
    this._body.removeAttribute("aria-busy");
    performance.measure("inside: picture", { start: begin });
  }

  /** @param {import("./ask.js").Maps} maps */
  _draw(maps) {
    const begin = performance.now();
    this._picture.draw(maps);
    performance.measure("inside: maps", { start: begin });
    const { block, first, size } = maps;
    const each = "A map has a row for each token and a column for each that it takes from; ";
    const long =
      block > 1
        ? `this text is long, so that a point is the mean of ${block} × ${block} tokens; `
        : "";
    const last = first > 0 ? `the last ${size} tokens are shown; ` : "";
    const colours = "colours grow with the square root of the weight, from 0 to 1.";
    this._note.textContent = each + long + last + colours;
  }

  /** @param {number | null} layer @param {number} position */
  _goTo(layer, position) {
    this._pick(position);
    this._picture.open(layer, null);
  }

  /** @param {number} left @param {number} count */
  _notices(left, count) {
    const write = () => this._store.update(({ view }) => ({ view: { ...view, room: "write" } }));
    const none = "There is no text to look into yet. ";
    return [
      count === 0 &&
        h("p", { class: "panel" }, none, h("button", { onclick: write }, "Write one")),
      left > 0 &&
        h(
          "p",
          { class: "notice panel" },
          `The model reads ${this._context} tokens at most: the first ${left} are left out.`,
        ),
    ].filter((one) => one !== false);
  }
}

/** @param {HTMLElement} room @param {import("../app.js").Page} page */
export function openInside(room, page) {
  new Room(room, page);
}

/** @param {Inspection} found @param {readonly string[]} named @param {number} position */
function headline({ next }, named, position) {
  const token = (/** @type {string} */ text) => h("b", { class: "token" }, text);
  const best = labels(next.slice(0, 1))[0];
  const share = percent(next[0].probability);
  const where = ` at position ${position} the most probable next token is `;
  return ["After ", token(named[position]), where, token(best), `, ${share}.`];
}
