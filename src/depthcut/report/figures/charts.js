// What every chart needs: elements, scales, colours, axes, and reading by pointer and keys. Text is only ever set as
// text, colours only as CSS variables, so that the reader's colour scheme and paper need no redraw.

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const find = (id) => document.getElementById(id);

const plotStyle = { background: "none", fontSize: "12px", fontFamily: "inherit", overflow: "visible" };

// Scores of the first and last block are often ten times those between: a linear scale would show only these two.
function needsLog(values, ratio) {
  const [low, high] = d3.extent(values);
  return low > 0 && high / low >= ratio;
}

function colourScale(values) {
  const [low, high] = d3.extent(values);
  const isLog = needsLog(values, 20);
  const toFraction = low < high ? (isLog ? d3.scaleLog : d3.scaleLinear)([low, high], [0, 1]) : () => 0.5;
  return { low, high, isLog, colour: (value) => shade(toFraction(value)) };
}

function shade(fraction) {
  const lower = d3.format(".1f")(100 * Math.min(1, 2 * fraction));
  const upper = d3.format(".1f")(100 * Math.max(0, 2 * fraction - 1));
  const middle = `color-mix(in oklab, var(--scale-low), var(--scale-middle) ${lower}%)`;
  return `color-mix(in oklab, ${middle}, var(--scale-high) ${upper}%)`;
}

// What a linear or logarithmic y axis over these values needs; d3's own log ticks crowd a short axis.
function valueAxis(values, isLog, label) {
  const common = { label, tickSize: 0 };
  if (!isLog) return { ...common, zero: true, nice: true, ticks: 5 };
  const domain = [0.8 * d3.min(values), 1.25 * d3.max(values)];
  const decades = d3.range(Math.floor(Math.log10(domain[0])), Math.ceil(Math.log10(domain[1])) + 1);
  const span = Math.log10(domain[1] / domain[0]);
  const steps = span > 2.5 ? [1] : span > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  const ticks = decades
    .flatMap((decade) => steps.map((step) => Number(`${step}e${decade}`)))
    .filter((tick) => tick >= domain[0] && tick <= domain[1]);
  return { ...common, type: "log", domain, ticks, tickFormat: "~r" };
}

function blockTicks(width, numBlocks) {
  const step = [1, 2, 5, 10, 20, 50].find((candidate) => (candidate * width) / numBlocks >= 26) ?? 100;
  return d3.range(0, numBlocks, step);
}

function read(readout, text, idle) {
  readout.textContent = text ?? idle;
  readout.classList.toggle("idle", text === undefined);
}

/**
 * Makes a chart readable by pointer, touch and arrow keys: the item there is outlined and told in the readout.
 * `locate` gives the item at a point, `move` the one next to an item, `outline` its box, `words` its text; `first`
 * is where the keys begin, `idle` the text while nothing is chosen, `choose` what a click or Enter does with an item.
 */
function explore(svg, label, readout, { locate, move, outline, words, first, idle, choose }) {
  const box = d3.select(svg).append("rect").attr("fill", "none").attr("stroke", "var(--ink)").attr("stroke-width", 2);
  let current;
  const show = (item) => {
    current = item;
    const { x, y, width, height } = item ? outline(item) : { x: 0, y: 0, width: 0, height: 0 };
    box.attr("x", x).attr("y", y).attr("width", width).attr("height", height).attr("rx", 1.5);
    box.attr("visibility", item ? "visible" : "hidden");
    read(readout, item && words(item), idle);
  };
  const hint = choose ? "Arrow keys read it, Enter chooses" : "Arrow keys read it";
  d3.select(svg)
    .attr("tabindex", 0)
    .attr("role", "img")
    .attr("aria-label", `${label}. ${hint}; the numbers are also in a table below.`)
    .on("pointermove pointerdown", (event) => {
      const item = locate(...d3.pointer(event, svg));
      if (item) show(item);
    })
    .on("click", () => {
      if (current && choose) choose(current);
    })
    .on("pointerleave", (event) => {
      if (event.pointerType === "mouse" && document.activeElement !== svg) show(undefined);
    })
    .on("blur", () => show(undefined))
    .on("keydown", (event) => {
      if (event.key === "Enter" && current && choose) choose(current);
      const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (!(event.key in directions)) return;
      event.preventDefault();
      show(current ? (move(current, ...directions[event.key]) ?? current) : first);
    });
  show(undefined);
}

// Paper cannot be unfolded.
function unfoldForPaper() {
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const details of unfolded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of unfolded) details.open = false;
  });
}
