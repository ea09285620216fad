import { h } from "../dom.js";

/**
 * @param {HTMLElement} room
 * @param {import("../app.js").Page} page
 */
export function openInside(room, page) {
  room.append(h("p", {}, page.model.name));
}
