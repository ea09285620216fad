"use strict";
// The tab key stops once in each [data-rove]; within, arrow keys go from tip to tip.
function rove(group) {
  group.querySelectorAll("[data-tip]").forEach((item, i) => { item.tabIndex = i ? -1 : 0; });
}
document.querySelectorAll("[data-rove]").forEach(rove);
addEventListener("focusin", ({target}) => {
  const group = target.closest("[data-rove]");
  if (!group || !target.dataset.tip) return;
  for (const item of group.querySelectorAll('[data-tip][tabindex="0"]')) item.tabIndex = -1;
  target.tabIndex = 0;
});
const row = (cell, step) =>
  cell.closest("table")?.rows[cell.parentNode.rowIndex + step]?.cells[cell.cellIndex];
const next = {
  ArrowLeft: item => item.previousElementSibling,
  ArrowRight: item => item.nextElementSibling,
  ArrowUp: item => row(item, -1),
  ArrowDown: item => row(item, 1),
  Home: item => item.parentNode.querySelector("[data-tip]"),
  End: item => [...item.parentNode.querySelectorAll("[data-tip]")].at(-1),
};
addEventListener("keydown", event => {
  if (!event.target.dataset?.tip || !event.target.closest("[data-rove]")) return;
  if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  const found = next[event.key]?.(event.target);
  if (!found?.dataset.tip) return;
  found.focus();
  event.preventDefault();
});
