// Curves of an objective against the share of the parameters that was removed.

// Keeps texts at the ends of curves from covering each other: their y in pixels, each a line below the one before.
function spread(places, gap) {
  const order = d3.sort(d3.range(places.length), (i) => places[i]);
  const moved = [...places];
  for (let k = 1; k < order.length; k += 1) {
    moved[order[k]] = Math.max(moved[order[k]], moved[order[k - 1]] + gap);
  }
  return moved;
}

/**
 * Draws curves with their names at their ends. A curve has `name`, `points` of `share` and `objective`, `stroke`
 * and `strokeWidth`; `marks` are drawn over all of them.
 */
function drawCurves(figure, width, { curves, marks, xLabel, yLabel, isNamed }) {
  const values = curves.flatMap(({ points }) => points.map((point) => point.objective));
  const axis = valueAxis(values, needsLog(values, 1000), yLabel);
  const longest = d3.max(curves, ({ name }) => name.length) ?? 0;
  const svg = Plot.plot({
    width,
    height: 290,
    marginLeft: 46,
    marginRight: isNamed ? Math.min(0.3 * width, 14 + 6.5 * longest) : 16,
    marginTop: 34,
    marginBottom: 38,
    style: plotStyle,
    x: {
      zero: true,
      percent: true,
      ticks: Math.max(3, Math.min(8, width / 90)),
      tickSize: 0,
      label: xLabel,
      labelAnchor: "right",
    },
    y: axis,
    marks: [
      Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: axis.ticks }),
      ...curves.map(({ points, stroke, strokeWidth }) =>
        Plot.line(points, { x: "share", y: "objective", stroke, strokeWidth }),
      ),
      ...marks,
    ],
  });
  figure.replaceChildren(svg);
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  const ends = isNamed ? curves.filter(({ points }) => points.length) : [];
  const places = spread(
    ends.map(({ points }) => y.apply(points.at(-1).objective)),
    14,
  );
  ends.forEach(({ name, points, stroke }, i) => {
    d3.select(svg)
      .append("text")
      .attr("x", x.apply(100 * points.at(-1).share) + 9)
      .attr("y", places[i])
      .attr("dy", "0.32em")
      .attr("text-anchor", "start")
      .attr("fill", stroke)
      .text(name.length > 22 ? `${name.slice(0, 21)}…` : name);
  });
  return { svg, x: (share) => x.apply(100 * share), y: (objective) => y.apply(objective) };
}
