// The page of several runs: their paths, one chart an objective, and their tasks.

const data = JSON.parse(find("data").textContent);
for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;

const objectives = [...new Set(data.runs.filter((run) => run.points.length).map((run) => run.objective))];

function drawPaths(width, objective, place) {
  const figure = find(`path-${place}`);
  const runs = data.runs.filter((run) => run.objective === objective && run.points.length);
  const curves = runs.map((run) => {
    const i = data.runs.indexOf(run);
    return {
      name: run.name,
      points: run.points.map(([order, share, value]) => ({ run, order, x: share, y: value })),
      stroke: modelStrokes[(i + 1) % modelStrokes.length],
    };
  });
  const points = curves.flatMap((curve) => curve.points.map((point) => ({ ...point, stroke: curve.stroke })));
  const { svg, x, y } = drawCurves(figure, width, {
    curves,
    isNamed: true,
    xLabel: "parameters removed, % →",
    yLabel: objective,
    marks: [
      Plot.dot(points, {
        filter: ({ run, order }) => order === run.applied || order === run.collapse,
        x: "x",
        y: "y",
        r: 4.5,
        fill: ({ run, order, stroke }) => (order === run.applied ? stroke : "var(--paper)"),
        stroke: "stroke",
        strokeWidth: 1.75,
      }),
    ],
  });
  const words = ({ run, order, x: share, y: value }) =>
    [
      `${run.name}: step ${order}`,
      `${objective} ${numberText(value)}`,
      `${percentText(share)} of the parameters removed`,
      order === run.applied ? "the run's model" : "",
      order === run.collapse ? "the last before the collapse" : "",
    ]
      .filter(Boolean)
      .join(" · ");
  const sameRun = (point) => points.filter(({ run }) => run === point.run);
  explore(svg, `${objective} after every removal, run by run`, find(`path-${place}-readout`), {
    first: points[0],
    locate: (px, py) => d3.least(points, (p) => Math.hypot(x(p.x) - px, y(p.y) - py)),
    move: (point, dx, dy) => {
      if (dx) return sameRun(point)[sameRun(point).indexOf(point) + dx];
      const other = runs[runs.indexOf(point.run) - dy];
      return other && d3.least(points.filter(({ run }) => run === other), (p) => Math.abs(p.x - point.x));
    },
    outline: (point) => ({ x: x(point.x) - 7, y: y(point.y) - 7, width: 14, height: 14 }),
    words,
    idle: "Point at a curve; up and down change the run.",
  });
}

const contentWidth = () => Math.floor(document.querySelector("section > .content").getBoundingClientRect().width);
let drawnWidth = 0;
function draw() {
  if (contentWidth() === drawnWidth) return;
  drawnWidth = contentWidth();
  objectives.forEach((objective, place) => drawPaths(drawnWidth, objective, place));
  drawTasks(drawnWidth, data.tasks, ["dense", ...data.runs.map((run) => run.name)]);
}
draw();
new ResizeObserver(() => requestAnimationFrame(draw)).observe(document.querySelector("main"));
unfoldForPaper();
