/** Several texts side by side; what all of them begin with is set back. */

import { h } from "../dom.js";
import { short } from "../numbers.js";
import { pieces, textOf } from "../tokens.js";
import { tokensOf, walked } from "../tree.js";
import { openDialog } from "../dialog.js";
import { stretch } from "./backdrop.js";
import { summary } from "./figures.js";

/**
 * @typedef {import("../state.js").Store} Store
 * @typedef {import("../types.js").Token} Token
 */

const TITLE = 40; // characters

/**
 * @param {Store} store
 * @param {import("./judging.js").Judge} judge
 * @param {string[]} ids The last branches of the texts.
 */
export async function compare(store, judge, ids) {
  for (const id of ids) await judge.know(id);
  const { tree, view } = store.state;
  const texts = ids.map((id) => tokensOf(walked(tree, id)));
  const common = shared(texts);
  const close = openDialog(
    "Side by side",
    [
      h(
        "p",
        { class: "soft" },
        common ? `The first ${common} tokens are the same in all.` : "They differ from the beginning.",
      ),
      h(
        "div",
        { class: "columns", "data-colour": view.colour, tabindex: "0", "aria-label": "The texts" },
        ...texts.map((tokens, i) => {
          const { name } = tree.branches[ids[i]];
          return column(name || titleOf(tokens.slice(common)), tokens, common, () => {
            store.update((state) => ({ tree: walked(state.tree, ids[i]) }));
            close();
          });
        }),
      ),
    ],
    "wide",
  );
}

/**
 * How many tokens some texts have in common at their beginning.
 *
 * @param {readonly (readonly Token[])[]} texts
 */
function shared([first, ...others]) {
  let n = 0;
  while (n < first.length && others.every((other) => other[n]?.id === first[n].id)) n += 1;
  return n;
}

/**
 * @param {string} title
 * @param {readonly Token[]} tokens
 * @param {number} common
 * @param {() => void} onShow
 */
function column(title, tokens, common, onShow) {
  const texts = pieces(tokens);
  const own = summary(tokens.slice(common));
  return h(
    "article",
    {},
    h("h3", {}, title),
    h(
      "p",
      { class: "soft" },
      `${tokens.length} tokens, ${own.count} of its own`,
      own.judged ? ` · ${short(own.bits)} bits each · perplexity ${short(own.perplexity)}` : "",
    ),
    h(
      "p",
      { class: "text" },
      h("span", { class: "common" }, texts.slice(0, common).join("")),
      ...tokens.slice(common).map((token, i) => stretch(token, texts[common + i])),
    ),
    h("button", { onclick: onShow }, "Write here"),
  );
}

/** @param {readonly Token[]} tokens */
function titleOf(tokens) {
  return textOf(tokens.slice(0, TITLE)).replace(/\s+/g, " ").trim().slice(0, TITLE) || "(the end)";
}
