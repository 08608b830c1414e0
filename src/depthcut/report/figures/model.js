// The model, what left it step by step, and the metrics that its units can be coloured by.

const data = JSON.parse(find("data").textContent);
const { plan } = data;
const numBlocks = plan.model.num_blocks;
const kindNames = { attn: "attention", mixer: "mixer", ffn: "FFN" };
const kindPlurals = { attn: "attentions", mixer: "mixers", ffn: "FFNs" };

const units = Object.entries(plan.unit_sizes).map(([key, size]) => {
  const [layer, kind] = key.split(".");
  return { key, layer: Number(layer), kind, parameters: size.parameters, kvBytes: size.kv_bytes_per_token };
});
const unitByKey = new Map(units.map((unit) => [unit.key, unit]));
const unitsByBlock = d3.group(units, (unit) => unit.layer);

// How many steps of the path the page shows as removed; the slider changes it.
const numApplied = plan.steps.filter((step) => step.applied).length;
let numShown = numApplied;

const orderOf = new Map(plan.steps.flatMap((step, i) => step.remove.map((key) => [key, i + 1])));
const isRemoved = (key) => orderOf.get(key) <= numShown;
const isGone = (block) => unitsByBlock.has(block) && unitsByBlock.get(block).every((unit) => isRemoved(unit.key));

const denseParameters = data.measurements.findLast((m) => m.name === "parameters" && m.model === "dense")?.value;
const allParameters = denseParameters ?? d3.sum(units, (unit) => unit.parameters);
const allKvBytes = d3.sum(units, (unit) => unit.kvBytes);

// What is removed after so many steps: `states[k]` after k; x is the share of the parameters, y the objective.
const states = [{ order: 0, remove: [], parameters: 0, kvBytes: 0, x: 0, y: null }];
for (const step of plan.steps) {
  const last = states.at(-1);
  const removed = step.remove.map((key) => unitByKey.get(key));
  const parameters = last.parameters + d3.sum(removed, (unit) => unit.parameters);
  states.push({
    order: last.order + 1,
    remove: step.remove,
    parameters,
    kvBytes: last.kvBytes + d3.sum(removed, (unit) => unit.kvBytes),
    x: parameters / allParameters,
    y: step.objective,
  });
}

function removedWords() {
  const removed = units.filter((unit) => isRemoved(unit.key));
  if (!removed.length) return "nothing";
  if (plan.unit === "block") return `${d3.range(numBlocks).filter(isGone).length} of ${numBlocks} blocks`;
  return Object.keys(kindNames)
    .map((kind) => [removed.filter((unit) => unit.kind === kind).length, kind])
    .filter(([count]) => count)
    .map(([count, kind]) => `${count} ${count === 1 ? kindNames[kind] : kindPlurals[kind]}`)
    .join(", ");
}

const metrics = (data.scores?.scores ?? []).map((scores) => ({
  group: scores.unit === "block" ? "Blocks" : "Sublayers",
  name: scores.metric,
  measure: scores.measure,
  ofBlocks: scores.unit === "block",
  value: (unit) => scores.values[scores.unit === "block" ? unit.layer : unit.key],
  error: (unit) => scores.standard_errors?.[scores.unit === "block" ? unit.layer : unit.key],
  text: numberText,
}));
if (plan.steps.length) {
  const order = (unit) => orderOf.get(unit.key);
  metrics.push({ group: "Path", name: "order of removal", measure: "", value: order, text: (step) => `step ${step}` });
}
metrics.push(
  { group: "Sizes", name: "parameters", measure: "", value: (unit) => unit.parameters, text: parametersText },
  { group: "Sizes", name: "KV bytes per token", measure: "", value: (unit) => unit.kvBytes, text: bytesText },
);
const isScore = (metric) => ["Blocks", "Sublayers"].includes(metric.group);
const preferredGroup = plan.unit === "block" ? "Blocks" : "Sublayers";
let metric = metrics.find((candidate) => candidate.group === preferredGroup) ?? metrics[0];
