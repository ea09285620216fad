import { h } from "../dom.js";

/**
 * @param {HTMLElement} room
 * @param {import("../app.js").Page} page
 */
export function openWrite(room, page) {
  room.append(h("p", {}, page.model.name));
}
