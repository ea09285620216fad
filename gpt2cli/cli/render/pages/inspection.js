const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
// Never "-0.00".
const fixed = (x, digits) => x.toFixed(digits).replace(/^-(0\.0+)$/, "$1");
const percent = p => (p >= 0.001 || !p ? (100 * p).toFixed(2) : (100 * p).toPrecision(2)) + " %";
const N = data.tokens.length, L = data.attention.length, H = data.attention[0].length;
const rowName = t => data.first + t + " " + data.tokens[t].label;

// All text goes through textContent: none of it is ever read as HTML.
function element(name, text = "", more = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.assign(made, more);
  return made;
}
function line(table, cells, name = "td") {
  const made = table.appendChild(element("tr"));
  for (const cell of cells)
    made.append(cell instanceof Node ? cell : element(name, cell));
  return made;
}
const heading = text => element("th", text, {scope: "row"});
const headings = (table, names) => line(table, names.map(name => element("th", name, {scope: "col"})));
function heat(cell, strength) {
  cell.classList.add("heat");
  cell.style.setProperty("--heat", strength.toFixed(3));
  return cell;
}
function tip(cell, text) {
  cell.dataset.tip = text;
  return cell;
}

// Attention: what is chosen is kept in the address, so that it can be sent along.
const state = {layer: L - 1, head: "mean", token: N - 1};
for (const [key, value] of new URLSearchParams(location.hash.slice(1)))
  if (key in state && value !== "")
    state[key] = value === "mean" ? value : Number(value);
const known = (value, count) => Number.isInteger(value) && value >= 0 && value < count;
if (!known(state.layer, L)) state.layer = L - 1;
if (!known(state.head, H)) state.head = "mean";
if (!known(state.token, N)) state.token = N - 1;

function pattern(t) {  // the weights of row t, one for each token up to it
  const heads = data.attention[state.layer];
  if (state.head !== "mean") return heads[state.head][t];
  return heads[0][t].map((_, i) => heads.reduce((sum, head) => sum + head[t][i], 0) / H);
}
function before(t) {  // what goes to tokens that are not shown
  const heads = data.attention_before[state.layer].map(head => head[t]);
  return state.head !== "mean" ? heads[state.head] : heads.reduce((a, b) => a + b, 0) / H;
}
function summary(t) {
  const weights = pattern(t);
  const most = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 3);
  const rest = data.first ? `, and ${percent(before(t))} from the ${data.first} tokens before these` : "";
  return `${rowName(t)} takes ` +
    most.map(s => `${percent(weights[s])} from ${rowName(s)}`).join(", ") + rest;
}
const spans = data.tokens.map((token, t) => {
  const span = tip(element("span", token.text), summary(t));
  span.onmouseenter = span.onfocus = () => { state.token = t; look(); };
  return $("text").appendChild(span);
});
function look() {
  const weights = pattern(state.token);
  spans.forEach((span, t) => {
    const weight = weights[t] ?? 0;
    span.className = t === state.token ? "from" : t > state.token ? "later" : "";
    heat(span, Math.sqrt(weight)).dataset.weight = weight.toFixed(3);
  });
  $("said").textContent = spans[state.token].dataset.tip = summary(state.token);
  history.replaceState(null, "", "#" + new URLSearchParams(state));
}
function drawMap() {
  const table = $("map");
  table.replaceChildren();
  table.style.setProperty("--tokens", N);
  headings(table, ["", ...data.tokens.map(token => token.label)]);
  for (let t = 0; t < N; t++) {
    const cells = pattern(t).map((weight, s) => {
      const text = `${rowName(t)} takes ${percent(weight)} from ${rowName(s)}`;
      return heat(tip(element("td", "", {ariaLabel: text}), text), Math.sqrt(weight));
    });
    const made = line(table, [heading(rowName(t)), ...cells]);
    for (const event of ["mouseenter", "focusin"])
      made.addEventListener(event, () => { state.token = t; look(); });
  }
  rove(table);
}
function pick(id, values) {
  for (const value of values)
    $(id).append(element("option", value === "mean" ? "mean of all" : value, {value}));
  $(id).value = state[id];
  $(id).onchange = () => {
    state[id] = $(id).value === "mean" ? "mean" : Number($(id).value);
    drawMap(); look();
  };
}
pick("layer", [...Array(L).keys()]);
pick("head", ["mean", ...Array(H).keys()]);
drawMap();
look();
rove($("text"));

// The rest does not move.
for (const place of document.querySelectorAll(".target")) place.textContent = data.target.label;
$("logit").textContent = data.target.logit.toFixed(3);
function bar(share) {
  const cell = element("td", "", {className: "bar"});
  cell.appendChild(element("i")).style.width = 100 * share + "%";
  return cell;
}
if (data.effect) {
  const likeliest = Math.max(...data.effect.tokens.map(token => token.after.probability));
  headings($("next"), ["token", "", "before", "after", "logit\nbefore", "logit\nafter"]);
  for (const {label, before, after} of data.effect.tokens)
    line($("next"), [heading(label), bar(after.probability / likeliest), percent(before.probability),
      percent(after.probability), fixed(before.logit, 3), fixed(after.logit, 3)]);
} else {
  headings($("next"), ["token", "", "probability", "logit"]);
  for (const choice of data.next)
    line($("next"), [heading(choice.label), bar(choice.probability / data.next[0].probability),
      percent(choice.probability), choice.logit.toFixed(3)]);
}

const lensName = layer => layer ? "layer " + (layer - 1) : "embeddings";
headings($("lens"), ["after", ...data.tokens.map(token => token.label), "probability", "rank"]);
data.lens.labels.forEach((places, layer) =>
  line($("lens"), [heading(lensName(layer)), ...places.map((labels, t) => {
    const p = data.lens.probabilities[layer][t];
    const says = labels.map((label, i) => `${label} ${percent(p[i])}`).join(", ");
    return heat(tip(element("td", labels[0]), `${lensName(layer)} after ${rowName(t)}: ${says}`), p[0]);
  }), percent(data.lens.target_probability[layer]),
  data.lens.target_rank[layer].toLocaleString("en")]));
rove($("lens"));
$("lens").parentNode.scrollLeft = $("lens").offsetWidth;  // where the last token is

const c = data.contributions;
const most = Math.max(...c.heads.flat().concat(c.attention_bias, c.feed_forward).map(Math.abs));
const shaded = value =>
  heat(element("td", fixed(value, 2), {className: value < 0 ? "cold" : ""}), Math.abs(value) / most);
headings($("parts"), ["layer", ...c.heads[0].map((_, h) => "head " + h), "bias", "feed-forward"]);
c.heads.forEach((heads, layer) => line($("parts"), [heading(layer), ...heads.map(shaded),
  shaded(c.attention_bias[layer]), shaded(c.feed_forward[layer])]));
line($("other"), [heading("token embedding"), fixed(c.token_embedding, 2)]);
line($("other"), [heading("position embedding"), fixed(c.position_embedding, 2)]);
line($("other"), [heading("shift of the final norm"), fixed(c.final_shift, 2)]);

const a = data.activations;
headings($("activations"), ["after", "", "stream", "attention\nadded", "feed-forward\nadded"]);
const longest = Math.max(...a.stream.map(lengths => lengths.at(-1)));
a.stream.forEach((lengths, layer) => line($("activations"), [heading(lensName(layer)),
  bar(lengths.at(-1) / longest),
  ...[lengths, ...(layer ? [a.attention[layer - 1], a.feed_forward[layer - 1]] : [])]
    .map(numbers => numbers.at(-1).toFixed(2))]));
const stages = ["in", "normalised", "out"].flatMap(s => ["mean_" + s, "variance_" + s]);
headings($("norms"), ["norm before", ...stages.map(s => s.replace("_", "\n"))]);
data.norms.mean_in.forEach((_, i) => line($("norms"), [
  heading(i === 2 * L ? "the head" : `${i % 2 ? "feed-forward" : "attention"} ${i >> 1}`),
  ...stages.map(s => fixed(data.norms[s][i].at(-1), 4))]));
