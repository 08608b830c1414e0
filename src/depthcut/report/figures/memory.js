// What weights and cache take while one sequence is decoded, by its length.

function drawMemory(width) {
  const figure = find("memory");
  if (!figure) return;
  const [scale, unit] = d3.max(data.memory, ({ dense }) => dense) < 2 ** 30 ? [2 ** 20, "MiB"] : [2 ** 30, "GiB"];
  const curves = ["dense", "pruned"].map((name, i) => ({
    name,
    stroke: i ? "var(--accent)" : "var(--ink)",
    points: data.memory.map((point) => ({ name, point, x: point.context, y: point[name] / scale })),
  }));
  const points = curves.flatMap((curve) => curve.points.map((point) => ({ ...point, stroke: curve.stroke })));
  const { svg, x, y } = drawCurves(figure, width, {
    curves,
    isNamed: true,
    isShare: false,
    isLog: false,
    xLabel: "tokens of context →",
    yLabel: unit,
    marks: [Plot.dot(points, { x: "x", y: "y", r: 4, fill: "stroke" })],
  });
  const words = ({ name, point }) =>
    [
      `${d3.format(",")(point.context)} tokens`,
      `${name} ${bytesText(point[name])}`,
      name === "dense" ? "" : changeText(point.dense, point.pruned),
    ]
      .filter(Boolean)
      .join(" · ");
  const ofModel = (point) => points.filter(({ name }) => name === point.name);
  explore(svg, "Weights and cache by length of the context, dense and pruned", find("memory-readout"), {
    first: points[0],
    locate: (px, py) => d3.least(points, (point) => Math.hypot(x(point.x) - px, y(point.y) - py)),
    move: (point, dx, dy) =>
      dx
        ? ofModel(point)[ofModel(point).indexOf(point) + dx]
        : points.find((other) => other.x === point.x && other.name === (dy > 0 ? "dense" : "pruned")),
    outline: (point) => ({ x: x(point.x) - 7, y: y(point.y) - 7, width: 14, height: 14 }),
    words,
    idle: words(points.at(-1)),
  });
}
