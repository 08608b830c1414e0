// The map: every unit of the model as a cell.

const frontKinds = ["attn", "mixer"].filter((kind) => units.some((unit) => unit.kind === kind));
const hasBothInABlock = units.some((unit) => unit.kind === "mixer" && unitByKey.has(`${unit.layer}.attn`));
const mapRows = [
  ...(hasBothInABlock || frontKinds.length < 2 ? frontKinds.map((kind) => [kind]) : [frontKinds]),
  ...(units.some((unit) => unit.kind === "ffn") ? [["ffn"]] : []),
];
const rowNames = { attn: "attn", mixer: "mixer", ffn: "FFN" };
const mapHint = "Point at a cell, or select one and use the arrow keys.";

function unitWords(unit) {
  const value = metric.value(unit);
  const order = orderOf.get(unit.key);
  return [
    unit.key,
    isScore(metric) && value != null ? `${metric.name} ${numberText(value)}${errorText(metric.error(unit))}` : "",
    parametersText(unit.parameters),
    unit.kvBytes ? `${bytesText(unit.kvBytes)} KV per token` : "",
    order ? (isRemoved(unit.key) ? `removed in step ${order}` : `step ${order} of the path, kept here`) : "kept",
  ]
    .filter(Boolean)
    .join(" · ");
}

let mapCells = [];

function drawMap(width) {
  const map = find("map");
  const readout = find("map-readout");
  const finest = 24; // px a cell: two digits fit, and a finger
  const perLine = Math.ceil(numBlocks / Math.ceil((numBlocks * finest) / (width - 46)));
  const scale = colourScale(units.map(metric.value).filter((value) => value != null));
  mapCells = [];

  const lines = d3.range(0, numBlocks, perLine).map((start) => {
    const blocks = d3.range(start, Math.min(start + perLine, numBlocks));
    const rows = mapRows.map((kinds, row) => {
      const head = make("span", { role: "rowheader" }, kinds.map((kind) => rowNames[kind]).join("/"));
      const inRow = blocks.map((block) => {
        const unit = kinds.map((kind) => unitByKey.get(`${block}.${kind}`)).find(Boolean);
        if (!unit) return make("span", { role: "gridcell", class: "cell absent" });
        const cell = make("span", { role: "gridcell", class: "cell", tabindex: -1 });
        const value = metric.value(unit);
        if (value != null) cell.style.setProperty("--fill", scale.colour(value));
        const tell = () => read(readout, unitWords(unit), mapHint);
        cell.addEventListener("pointerenter", tell);
        cell.addEventListener("click", () => cell.focus());
        cell.addEventListener("focus", tell);
        mapCells.push({ cell, unit, block, row });
        return cell;
      });
      return make("div", { role: "row" }, head, ...inRow);
    });
    const gap = Math.ceil((18 * perLine) / (width - 46));
    const numbers = blocks.map((block) =>
      make("span", { role: "columnheader" }, gap === 1 || (block - start) % 5 === 0 ? String(block) : ""),
    );
    rows.push(make("div", { role: "row" }, make("span", { role: "rowheader" }, "block"), ...numbers));
    return make("div", { class: "line", role: "presentation", style: `--columns: ${perLine}` }, ...rows);
  });
  map.replaceChildren(...lines);
  map.setAttribute("role", "grid");
  map.setAttribute("aria-label", `Units of the model by ${metric.name}`);
  map.onpointerleave = () => {
    if (!map.contains(document.activeElement)) read(readout, undefined, mapHint);
  };
  map.onkeydown = (event) => {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const here = mapCells.find(({ cell }) => cell === document.activeElement);
    if (!(event.key in directions) || !here) return;
    event.preventDefault();
    const [blocks, rows] = directions[event.key];
    const next = mapCells.find(({ block, row }) => block === here.block + blocks && row === here.row + rows);
    if (!next) return;
    here.cell.tabIndex = -1;
    next.cell.tabIndex = 0;
    next.cell.focus();
  };
  if (mapCells.length) mapCells[0].cell.tabIndex = 0;
  read(readout, undefined, mapHint);
  markMap();

  find("map-low").textContent = scale.low == null ? "" : metric.text(scale.low);
  find("map-high").textContent = scale.high == null ? "" : metric.text(scale.high);
  find("map-scale").textContent = scale.isLog ? "(log scale)" : "";
}

// Marks what is removed at this number of steps on the cells that stand there.
function markMap() {
  for (const { cell, unit } of mapCells) {
    cell.classList.toggle("removed", isRemoved(unit.key));
    cell.textContent = isRemoved(unit.key) ? orderOf.get(unit.key) : "";
    cell.setAttribute("aria-label", unitWords(unit));
  }
}
