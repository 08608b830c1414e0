// Curves with their names at their ends.

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
 * Draws curves. A curve has `name`, `points` of `x` and `y`, `stroke`, and perhaps `strokeDasharray`; `marks` are drawn
 * over all of them. `isShare` says that x is a fraction, which the axis shows in per cent; `isLog` is left open where
 * the values decide.
 */
function drawCurves(figure, width, { curves, marks, xLabel, yLabel, isNamed, isShare = true, isLog }) {
  const values = curves.flatMap(({ points }) => points.map((point) => point.y));
  const axis = valueAxis(values, isLog ?? needsLog(values, 1000), yLabel);
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
      percent: isShare,
      ticks: Math.max(3, Math.min(8, width / 90)),
      tickSize: 0,
      label: xLabel,
      labelAnchor: "right",
    },
    y: axis,
    marks: [
      Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: axis.ticks }),
      ...curves.map(({ points, stroke, strokeDasharray }) =>
        Plot.line(points, { x: "x", y: "y", stroke, strokeWidth: 1.75, strokeDasharray }),
      ),
      ...marks,
    ],
  });
  figure.replaceChildren(svg);
  const [xScale, y] = [svg.scale("x"), svg.scale("y")];
  const x = (value) => xScale.apply(isShare ? 100 * value : value);
  const ends = isNamed ? curves.filter(({ points }) => points.length) : [];
  const places = spread(
    ends.map(({ points }) => y.apply(points.at(-1).y)),
    14,
  );
  ends.forEach(({ name, points, stroke }, i) => {
    d3.select(svg)
      .append("text")
      .attr("x", x(points.at(-1).x) + 9)
      .attr("y", places[i])
      .attr("dy", "0.32em")
      .attr("text-anchor", "start")
      .attr("fill", stroke)
      .text(name.length > 22 ? `${name.slice(0, 21)}…` : name);
  });
  return { svg, x, y: y.apply };
}
