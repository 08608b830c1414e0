// The repairs that were trained.

function drawTraining(width) {
  const figure = find("training");
  const points = data.repairs.flatMap(({ method, curve }) => curve.map(([step, loss]) => ({ method, step, loss })));
  if (!figure || !points.length) return;
  const axis = valueAxis(points.map((point) => point.loss), false, "training loss");
  const svg = Plot.plot({
    width,
    height: 220,
    marginLeft: 46,
    marginRight: 84,
    marginTop: 30,
    marginBottom: 38,
    style: plotStyle,
    x: { tickSize: 0, ticks: Math.max(3, Math.min(8, width / 90)), label: "step →", labelAnchor: "right" },
    y: axis,
    marks: [
      Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: axis.ticks }),
      Plot.line(points, { x: "step", y: "loss", z: "method", stroke: "var(--ink)", strokeWidth: 1.75 }),
      Plot.text(points, Plot.selectLast({ x: "step", y: "loss", z: "method", text: "method", textAnchor: "start", dx: 8 })),
    ],
  });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "Training loss by step; the table below holds the numbers");
  figure.replaceChildren(svg);
}
