// Scores that are shares, by task: a row a task, a mark a model, with its 95 % interval.

const Z_95 = 1.96;
const modelStrokes = ["var(--ink)", "var(--accent)", "var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)"];
const modelSymbols = ["circle", "diamond", "triangle", "square", "star", "wye"];

/** Draws the results; `order` says which models come first, so that a run looks the same in all charts of a page. */
function drawTasks(width, results, order) {
  const figure = find("tasks");
  if (!figure) return;
  const tasks = [...new Set(results.map((result) => result.task))];
  const found = new Set(results.map((result) => result.model));
  const models = [...new Set([...order, ...found])];
  const shown = models.filter((model) => found.has(model));
  const offset = (result) => (shown.indexOf(result.model) - (shown.length - 1) / 2) * 9;
  const rowHeight = Math.max(30, 9 * shown.length + 14);
  const longest = d3.max(tasks, (task) => task.length);
  const marginLeft = Math.min(0.36 * width, 12 + 6.6 * longest);
  const characters = Math.floor((marginLeft - 12) / 6.6);
  const marks = shown.flatMap((model) => {
    const i = models.indexOf(model);
    const ofModel = results.filter((result) => result.model === model);
    const stroke = modelStrokes[i % modelStrokes.length];
    const withError = ofModel.filter((result) => result.stderr);
    const bounds = {
      x1: (result) => Math.max(0, result.value - Z_95 * result.stderr),
      x2: (result) => Math.min(1, result.value + Z_95 * result.stderr),
    };
    const common = { y: "task", dy: offset(ofModel[0]), stroke, strokeWidth: 1.75 };
    return [
      Plot.link(withError, { ...bounds, ...common, y1: "task", y2: "task", y: undefined }),
      Plot.dot(ofModel, {
        ...common,
        x: "value",
        r: 4,
        symbol: modelSymbols[i % modelSymbols.length],
        fill: i === 0 ? "var(--paper)" : stroke,
      }),
    ];
  });
  const low = d3.min(results, (result) => result.value - Z_95 * (result.stderr ?? 0));
  const high = d3.max(results, (result) => result.value + Z_95 * (result.stderr ?? 0));
  const svg = Plot.plot({
    width,
    height: 60 + rowHeight * tasks.length,
    marginLeft,
    marginRight: 16,
    marginTop: 10,
    marginBottom: 38,
    style: plotStyle,
    x: {
      domain: [100 * Math.max(0, low - 0.05), 100 * Math.min(1, high + 0.05)],
      percent: true,
      ticks: Math.max(3, Math.min(8, width / 90)),
      tickSize: 0,
      label: "share, % →",
      labelAnchor: "right",
    },
    y: {
      type: "point",
      domain: tasks,
      padding: 0.5,
      label: null,
      tickSize: 0,
      tickFormat: (task) => (task.length > characters ? `${task.slice(0, characters - 1)}…` : task),
    },
    marks: [Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }), ...marks],
  });
  const keys = shown.map((model) => seriesKey(model, models.indexOf(model)));
  figure.replaceChildren(make("figcaption", {}, ...keys), svg);

  const y = svg.scale("y");
  const words = (task) => {
    const texts = results
      .filter((result) => result.task === task)
      .map((result) => `${result.model} ${percentText(result.value)}${result.stderr ? ` ± ${percentText(result.stderr)}` : ""}`);
    return [task, ...texts].join(" · ");
  };
  explore(svg, "Shares by task", find("tasks-readout"), {
    first: tasks[0],
    locate: (_, py) => d3.least(tasks, (task) => Math.abs(y.apply(task) - py)),
    move: (task, _, dy) => tasks[tasks.indexOf(task) - dy],
    outline: (task) => ({ x: 0, y: y.apply(task) - rowHeight / 2, width, height: rowHeight }),
    words,
    idle: `${tasks.length} ${tasks.length === 1 ? "task" : "tasks"}; point at one`,
  });
}

function seriesKey(name, i) {
  const symbol = modelSymbols[i % modelSymbols.length];
  const stroke = modelStrokes[i % modelStrokes.length];
  const svg = d3.create("svg").attr("width", 14).attr("height", 14).attr("aria-hidden", true);
  svg
    .append("path")
    .attr("d", d3.symbol(d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`], 40)())
    .attr("transform", "translate(7 7)")
    .attr("fill", i === 0 ? "var(--paper)" : stroke)
    .attr("stroke", stroke)
    .attr("stroke-width", 1.75);
  return make("span", {}, svg.node(), name);
}
