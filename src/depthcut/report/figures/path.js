// The path of the search: the objective after every removal, and where it collapses.

function drawPath(width, choose) {
  const figure = find("path");
  if (!figure) return;
  const steps = states.filter((state) => state.y != null);
  const shown = steps.find((state) => state.order === numShown);
  const collapse = states[data.collapse];
  const last = steps.at(-1).x;
  const isBehind = (state) => state.x > 0.7 * last;
  const rule = (state, text, stroke, line) => [
    Plot.ruleX([state], { x: "x", stroke, strokeDasharray: "2 3" }),
    Plot.text([state], {
      x: "x",
      frameAnchor: "top",
      textAnchor: isBehind(state) ? "end" : "start",
      dx: isBehind(state) ? -7 : 7,
      dy: 4 + 15 * line,
      text: () => text,
      fill: stroke,
    }),
  ];
  const { svg, x, y } = drawCurves(figure, width, {
    curves: [{ name: plan.method, points: steps, stroke: "var(--ink)" }],
    isNamed: false,
    xLabel: denseParameters ? "parameters removed, % →" : "parameters of the blocks removed, % →",
    yLabel: plan.objective,
    marks: [
      ...(collapse ? rule(collapse, "collapse", "var(--ink)", 1) : []),
      ...(shown ? rule(shown, numShown === numApplied ? "this model" : stepsText(numShown), "var(--accent)", 0) : []),
      Plot.dot(steps, {
        x: "x",
        y: "y",
        r: steps.length > width / 14 ? 2.5 : 4,
        fill: (state) => (state.order <= numShown ? "var(--accent)" : "var(--paper)"),
        stroke: (state) => (state.order <= numShown ? "var(--accent)" : "var(--ink)"),
        strokeWidth: 1.75,
      }),
    ],
  });

  const words = (state) =>
    [
      `step ${state.order}: ${state.remove.join(", ")}`,
      `${plan.objective} ${numberText(state.y)}`,
      `${percentText(state.x)} of the parameters removed`,
      state === collapse ? "the last before the collapse" : "",
      state.order <= numApplied ? "in this model" : "not in this model",
    ]
      .filter(Boolean)
      .join(" · ");
  explore(svg, `${plan.objective} after every removal`, find("path-readout"), {
    first: steps[0],
    locate: (px) => d3.least(steps, (state) => Math.abs(x(state.x) - px)),
    move: (state, dx) => steps[steps.indexOf(state) + dx],
    outline: (state) => ({ x: x(state.x) - 7, y: y(state.y) - 7, width: 14, height: 14 }),
    words,
    idle: words(shown ?? steps[0]),
    choose: (state) => choose(state.order),
  });
}
