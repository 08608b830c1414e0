// The page of a study: its curves, its units by two measures, and its values of every window.

const data = JSON.parse(find("data").textContent);
for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;

const seriesStroke = (i) => modelStrokes[(i + 1) % modelStrokes.length];
const outlineOf = (px, py) => ({ x: px - 7, y: py - 7, width: 14, height: 14 });

function drawStudyCurves(figure, width, readout, { title, x_label, y_label, is_log, curves: all }) {
  // What overflowed is off every scale; it is `null` in the data.
  const curves = all.map((curve) => ({
    name: curve.name,
    stroke: seriesStroke(curve.colour),
    strokeDasharray: curve.is_dashed ? "5 4" : null,
    points: curve.points
      .map(([x, y], i) => ({ curve, x, y, stroke: seriesStroke(curve.colour), isLast: i === curve.collapse }))
      .filter(({ y }) => y != null && (y > 0 || !is_log)),
  }));
  const points = curves.flatMap((curve) => curve.points);
  const { svg, x, y } = drawCurves(figure, width, {
    curves,
    isNamed: true,
    isShare: false,
    isLog: is_log,
    xLabel: `${x_label} →`,
    yLabel: y_label + (is_log ? " (log scale)" : ""),
    marks: [
      Plot.dot(points, { x: "x", y: "y", r: 2.6, fill: "stroke" }),
      Plot.dot(points, { filter: "isLast", x: "x", y: "y", r: 7, stroke: "stroke", strokeWidth: 1.75 }),
    ],
  });
  const ofCurve = (curve) => points.filter((point) => point.curve === curve);
  explore(svg, title, readout, {
    first: points[0],
    locate: (px, py) => d3.least(points, (p) => Math.hypot(x(p.x) - px, y(p.y) - py)),
    move: (point, dx, dy) => {
      if (dx) return ofCurve(point.curve)[ofCurve(point.curve).indexOf(point) + dx];
      const other = all[all.indexOf(point.curve) - dy];
      return other && d3.least(ofCurve(other), (p) => Math.abs(p.x - point.x));
    },
    outline: (point) => outlineOf(x(point.x), y(point.y)),
    words: (point) =>
      `${point.curve.name}: ${numberText(point.y)} at ${numberText(point.x)}${point.isLast ? " · the last before the collapse" : ""}`,
    idle: "Point at a curve; up and down change it.",
  });
}

// An axis on which values of any size can be told apart: even, logarithmic, or logarithmic on both sides of zero.
function spreadAxis(values, label, mayBeLog) {
  const sizes = values.map(Math.abs).filter(Boolean);
  if (!mayBeLog || sizes.length < 2 || d3.max(sizes) / d3.median(sizes) < 20) {
    return { label, nice: true, ticks: 6, tickSize: 0, inset: 8, tickFormat: "~r" };
  }
  if (d3.min(values) > 0) return { ...valueAxis(values, true, `${label} (log scale)`), inset: 8 };
  const constant = 10 ** Math.floor(Math.log10(d3.median(sizes)));
  const [low, high] = d3.extent(values);
  const decades = d3.range(10).map((power) => constant * 10 ** power);
  const ticks = [...decades.map((tick) => -tick).reverse(), 0, ...decades].filter((tick) => tick >= low && tick <= high);
  const beyond = `${label} (log scale beyond ${numberText(constant)})`;
  return { type: "symlog", constant, label: beyond, ticks, tickFormat: "~r", tickSize: 0, inset: 8 };
}

// The names that stand beside their points without covering an earlier name.
function withRoom(named, x, y) {
  const kept = [];
  for (const point of named) {
    const box = { left: x.apply(point.x) + 6, top: y.apply(point.y), width: 6.6 * point.name.length };
    const covers = (o) => box.left < o.left + o.width && o.left < box.left + box.width && Math.abs(box.top - o.top) < 13;
    if (!kept.some(covers)) kept.push({ ...box, name: point.name });
  }
  return kept;
}

function drawUnits(figure, width, readout, { title, x_label, y_label, points, may_be_log }) {
  const groups = [...new Set(points.map((point) => point.group))];
  const place = (point) => groups.indexOf(point.group);
  const axis = (key, label) => spreadAxis(points.map((point) => point[key]), label, may_be_log);
  const [xAxis, yAxis] = [axis("x", `${x_label} →`), axis("y", y_label)];
  const svg = Plot.plot({
    width,
    height: 400,
    marginLeft: 52,
    marginRight: 60,
    marginTop: 34,
    marginBottom: 38,
    style: plotStyle,
    x: { ...xAxis, labelAnchor: "right" },
    y: yAxis,
    marks: [
      Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: yAxis.ticks }),
      ...groups.map((group, i) =>
        Plot.dot(points, {
          filter: (point) => point.group === group,
          x: "x",
          y: "y",
          r: 3.5,
          symbol: modelSymbols[i % modelSymbols.length],
          fill: seriesStroke(i),
        }),
      ),
    ],
  });
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  for (const { left, top, name } of withRoom(points.filter((point) => point.is_named), x, y)) {
    const text = d3.select(svg).append("text").attr("x", left).attr("y", top).attr("dy", "0.32em");
    text.attr("text-anchor", "start").attr("fill", "var(--ink)").text(name);
  }
  const keys = groups.filter(Boolean).map((group) => seriesKey(group, groups.indexOf(group) + 1));
  figure.replaceChildren(make("figcaption", {}, ...keys), svg);
  const inOrder = d3.sort(points, (point) => point.x);
  explore(svg, title, readout, {
    first: inOrder[0],
    locate: (px, py) => d3.least(points, (p) => Math.hypot(x.apply(p.x) - px, y.apply(p.y) - py)),
    move: (point, dx, dy) => inOrder[inOrder.indexOf(point) + (dx || dy)],
    outline: (point) => outlineOf(x.apply(point.x), y.apply(point.y)),
    words: ({ name, x: first, y: second }) =>
      `${name}: ${x_label} ${numberText(first)} · ${y_label} ${numberText(second)}`,
    idle: "Point at a mark.",
  });
}

function drawStudyWindows(figure, width, readout, { title, measure, rows }) {
  const scale = drawWindows(figure, width, readout, { rows, runs: [], label: title, measure });
  const [low, high] = [numberText(scale.low), numberText(scale.high) + (scale.isLog ? " (log scale)" : "")];
  const ramp = make("span", { class: "ramp", "aria-hidden": true });
  figure.prepend(make("figcaption", {}, make("span", { class: "legend" }, low, ramp, high)));
}

// A figure as a file that needs nothing else: colours are what they are on the page now.
function saveFigure(svg, name) {
  const pixel = make("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const plain = (colour) => {
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    return `rgb(${pixel.getImageData(0, 0, 1, 1).data.slice(0, 3).join(",")})`;
  };
  const copy = svg.cloneNode(true);
  const copies = [copy, ...copy.querySelectorAll("*")];
  [svg, ...svg.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const key of ["fill", "stroke"]) {
      if (style[key] !== "none") copies[i].setAttribute(key, plain(style[key]));
    }
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.style.fontFamily = "system-ui, sans-serif";
  const url = URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" }));
  make("a", { href: url, download: `${name}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const drawers = { curves: drawStudyCurves, points: drawUnits, windows: drawStudyWindows };
const names = Object.keys(data.figures);
for (const name of names) {
  find(`save-${name}`).addEventListener("click", () => saveFigure(find(`figure-${name}`).querySelector(":scope > svg"), name));
}
const contentWidth = () => Math.floor(document.querySelector("section > .content").getBoundingClientRect().width);
let drawnWidth = 0;
function draw() {
  if (contentWidth() === drawnWidth) return;
  drawnWidth = contentWidth();
  for (const name of names) {
    const figure = data.figures[name];
    drawers[figure.kind](find(`figure-${name}`), drawnWidth, find(`readout-${name}`), figure);
  }
}
draw();
new ResizeObserver(() => requestAnimationFrame(draw)).observe(document.querySelector("main"));
unfoldForPaper();
