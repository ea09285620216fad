/** Begins the page: asks for the model, opens the rooms, and knows what all of them share. */

import { Refusal, model as askModel, useKey } from "./api.js";
import { find, h, say } from "./dom.js";
import { openInside } from "./inside/room.js";
import { beginning, keep } from "./keeping.js";
import { bindKeys } from "./keys.js";
import { Store } from "./state.js";
import { openWhatIf } from "./whatif/room.js";
import { openWrite } from "./write/room.js";

/**
 * @typedef {import("./types.js").Model} Model
 * @typedef {import("./types.js").View} View
 * @typedef {{store: Store, model: Model}} Page What every room gets.
 */

const ROOMS = /** @type {const} */ (["write", "inside", "whatif"]);
const AGAIN = 2000; // milliseconds until a server that is not there is asked again

async function main() {
  const model = await reached();
  const store = new Store(await beginning(model));
  const page = { store, model };
  find("#title").textContent = model.name;
  find("#model").textContent = model.description;
  document.title = `${model.name} · GPT-2`;
  keep(store, model, (problem) => say(problem, "error"));
  openWrite(find("#room-write"), page);
  openInside(find("#room-inside"), page);
  openWhatIf(find("#room-whatif"), page);
  bindRooms(store);
  bindKeys(store);
  document.body.dataset.ready = "true";
}

/** The model, as soon as the server answers; asks for a key where one is needed. */
async function reached() {
  for (;;) {
    try {
      const found = await askModel();
      say("");
      return found;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 401) {
        useKey(await askForKey(error.message));
      } else {
        say(`${error.message}; asking again`, "error");
        await new Promise((resolve) => setTimeout(resolve, AGAIN));
      }
    }
  }
}

/** @param {string} why @returns {Promise<string>} */
function askForKey(why) {
  const dialog = /** @type {HTMLDialogElement} */ (find("#dialog"));
  const field = h("input", { type: "password", autocomplete: "off", required: true });
  return new Promise((resolve) => {
    const form = h(
      "form",
      { method: "dialog", onsubmit: () => resolve(field.value.trim()) },
      h("h2", { id: "dialog-title" }, "This server asks for a key"),
      h("p", {}, why),
      h("label", {}, "Key ", field),
      h("button", { class: "main" }, "Enter"),
    );
    dialog.replaceChildren(form);
    // Browsers close a dialog at the second Escape, whatever its page says.
    dialog.onclose = () => {
      if (!field.value.trim()) dialog.showModal();
    };
    dialog.showModal();
  });
}

/** @param {Store} store */
function bindRooms(store) {
  const tabs = ROOMS.map((name) => find(`#tab-${name}`));
  /** @param {View["room"]} room */
  const open = (room) => {
    say(""); // what was said is about the room that is left
    store.update(({ view }) => ({ view: { ...view, room } }));
  };
  ROOMS.forEach((name, i) => {
    tabs[i].addEventListener("click", () => open(name));
    tabs[i].addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: ROOMS.length - 1 }[event.key];
      if (step === undefined) return;
      const there = (i + step) % ROOMS.length;
      open(ROOMS[there]);
      tabs[there].focus();
    });
  });
  store.subscribe(
    (state) => state.view.room,
    (state) =>
      ROOMS.forEach((name, i) => {
        const isOpen = name === state.view.room;
        find(`#room-${name}`).hidden = !isOpen;
        tabs[i].setAttribute("aria-selected", String(isOpen));
        tabs[i].tabIndex = isOpen ? 0 : -1;
      }),
  );
}

main().catch((error) => say(`the page has failed: ${error}`, "error"));
