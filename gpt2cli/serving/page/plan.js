/**
 * What is changed inside the model, as plain data: pure functions, each of which leaves its plan
 * as it was and gives another. The names are those of `Interventions.of`.
 *
 * @typedef {import("./types.js").Plan} Plan
 * @typedef {import("./types.js").Steering} Steering
 * @typedef {"head" | "attention" | "mlp" | "layer" | "position"} Kind
 * @typedef {{kind: Kind, number: number, head: number | null}} Part
 */

/** @type {readonly Kind[]} In the order in which people are told of them. */
const KINDS = ["layer", "attention", "mlp", "head", "position"];
const COUNTED = {
  layer: ["layer", "layers"],
  attention: ["layer's attention", "layers' attention"],
  mlp: ["MLP", "MLPs"],
  head: ["head", "heads"],
  position: ["position", "positions"],
};

/** @returns {Plan} */
export function emptyPlan() {
  return { ablate: [], ablate_with: "zero", reference: null, steer: [] };
}

/** Whether nothing is changed. @param {Plan} plan */
export function isEmpty(plan) {
  return plan.ablate.length === 0 && plan.steer.length === 0;
}

/** @param {Plan} a @param {Plan} b Whether both do the same. */
export function same(a, b) {
  return JSON.stringify(requested(a)) === JSON.stringify(requested(b));
}

/**
 * What the server needs of a plan: a reference only where a mean is taken over it.
 *
 * @param {Plan} plan
 * @returns {Plan}
 */
export function requested(plan) {
  const isMean = plan.ablate_with === "mean" && plan.ablate.length > 0;
  return {
    ablate: plan.ablate,
    ablate_with: isMean ? "mean" : "zero",
    reference: isMean ? (plan.reference ?? "") : null,
    steer: plan.steer,
  };
}

/** The name of a head. @param {number} layer @param {number} head */
export function headName(layer, head) {
  return `${layer}.${head}`;
}

/** @param {string} name @returns {Part} */
export function parsed(name) {
  const [kind, last] = name.split(".");
  if (/^\d+$/.test(kind)) return { kind: "head", number: Number(kind), head: Number(last) };
  return { kind: /** @type {Kind} */ (kind), number: Number(last), head: null };
}

/** Switch one part off, or on again. @param {Plan} plan @param {string} name @returns {Plan} */
export function toggled(plan, name) {
  const isOff = plan.ablate.includes(name);
  const ablate = isOff ? plan.ablate.filter((other) => other !== name) : [...plan.ablate, name];
  return { ...plan, ablate };
}

/** Switch some parts on again. @param {Plan} plan @param {readonly string[]} names */
export function without(plan, names) {
  return { ...plan, ablate: plan.ablate.filter((name) => !names.includes(name)) };
}

/** Everything on again; what a mean would be taken over stays. @param {Plan} plan */
export function cleared(plan) {
  return { ...plan, ablate: [], steer: [] };
}

/** @param {Plan} plan @param {Steering} steering @returns {Plan} */
export function steered(plan, steering) {
  return { ...plan, steer: [...plan.steer, steering] };
}

/**
 * Change one steering, or take it away with null.
 *
 * @param {Plan} plan
 * @param {number} index
 * @param {Partial<Steering> | null} change
 * @returns {Plan}
 */
export function resteered(plan, index, change) {
  const steer = plan.steer.flatMap((one, i) => {
    if (i !== index) return [one];
    return change === null ? [] : [{ ...one, ...change }];
  });
  return { ...plan, steer };
}

/** The larger part that a part lies in and that is off already, or null.
 * @param {Plan} plan @param {string} name @returns {string | null} */
export function coveredBy(plan, name) {
  const { kind, number } = parsed(name);
  const larger = {
    head: [`attention.${number}`, `layer.${number}`],
    attention: [`layer.${number}`],
    mlp: [`layer.${number}`],
    layer: [],
    position: [],
  }[kind];
  return larger.find((other) => plan.ablate.includes(other)) ?? null;
}

/** Positions that the plan names and a text of so many tokens has not.
 * @param {Plan} plan @param {number} tokens @returns {string[]} */
export function beyond(plan, tokens) {
  return plan.ablate.filter((name) => {
    const { kind, number } = parsed(name);
    return kind === "position" && number >= tokens;
  });
}

/** A part in words. @param {string} name */
export function partInWords(name) {
  const { kind, number } = parsed(name);
  return {
    head: `head ${name}`,
    attention: `attention of layer ${number}`,
    mlp: `MLP of layer ${number}`,
    layer: `layer ${number}`,
    position: `position ${number}`,
  }[kind];
}

/** A plan in a few words, such as "2 heads are off, steering at layer 6"; empty for none.
 * @param {Plan} plan */
export function inWords(plan) {
  const { ablate, ablate_with: mean, steer } = plan;
  const counts = KINDS.flatMap((kind) => {
    const count = ablate.filter((name) => parsed(name).kind === kind).length;
    return count ? [`${count} ${COUNTED[kind][count > 1 ? 1 : 0]}`] : [];
  });
  const parts = ablate.length === 1 ? partInWords(ablate[0]) : joined(counts);
  const verb = ablate.length === 1 ? "is" : "are";
  const layers = [...new Set(steer.map((one) => one.layer))].sort((a, b) => a - b);
  return [
    parts && `${parts} ${verb} ${mean === "mean" ? "at the mean" : "off"}`,
    layers.length > 0 && `steering at ${layers.length > 1 ? "layers" : "layer"} ${joined(layers)}`,
  ]
    .filter(Boolean)
    .join(", ");
}

/** @param {readonly (string | number)[]} items */
function joined(items) {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`;
}
