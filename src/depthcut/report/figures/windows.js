// A value for every window of consecutive blocks: each cell stands above the middle of the blocks that it spans.

/**
 * Draws `rows`: row l holds the values of the windows of 1, 2, ... blocks from block l on. A dot marks the least value of
 * each number of blocks; `runs` of `start` and `size` are outlined. `measure` names a value, `idle` is the window told
 * while none is pointed at, else the least of one block. Returns the scale of the colours.
 */
function drawWindows(figure, width, readout, { rows, runs, label, measure, idle }) {
  const cells = rows.flatMap((row, start) => row.map((value, i) => ({ start, size: i + 1, value })));
  const least = d3.groups(cells, (cell) => cell.size).map(([, sameSize]) => d3.least(sameSize, (c) => c.value));
  const cellAt = (start, size) =>
    size >= 1 && start >= 0 && rows[start]?.[size - 1] != null
      ? { start, size, value: rows[start][size - 1] }
      : undefined;
  const numRows = d3.max(cells, (cell) => cell.size);
  const scale = colourScale(cells.map((cell) => cell.value));
  const middle = (cell) => cell.start + cell.size / 2;
  const bounds = {
    x1: (cell) => middle(cell) - 0.5,
    x2: (cell) => middle(cell) + 0.5,
    y1: (cell) => cell.size - 0.5,
    y2: (cell) => cell.size + 0.5,
  };
  const sides = runs.flatMap((run) => [
    { x1: run.start, x2: middle(run) - 0.5, size: run.size },
    { x1: run.start + run.size, x2: middle(run) + 0.5, size: run.size },
  ]);
  const height = Math.round(Math.min(460, 0.5 * width + 60));
  const rowStep = numRows > 60 ? 20 : numRows > 12 ? 5 : 1;
  const svg = Plot.plot({
    width,
    height,
    marginLeft: 46,
    marginRight: 6,
    marginTop: 26,
    marginBottom: 44,
    style: plotStyle,
    x: { domain: [0, rows.length], axis: null },
    y: { domain: [0.5, numRows + 0.5] },
    color: { type: "identity" },
    marks: [
      Plot.axisY(d3.range(rowStep, numRows + 1, rowStep), { tickSize: 0, label: "n blocks", tickFormat: String }),
      Plot.rect(cells, { ...bounds, fill: (cell) => scale.colour(cell.value), inset: rows.length > 48 ? 0 : 0.5 }),
      Plot.dot(least, {
        x: middle,
        y: "size",
        r: Math.max(0.9, Math.min(2, (0.2 * height) / numRows)),
        fill: "var(--ink)",
        stroke: "var(--paper)",
        paintOrder: "stroke",
      }),
      Plot.link(sides, {
        x1: "x1",
        x2: "x2",
        y1: 0.5,
        y2: (side) => side.size - 0.5,
        stroke: "var(--accent)",
        strokeWidth: 1.5,
      }),
      Plot.rect(runs, { ...bounds, fill: "none", stroke: "var(--accent)", strokeWidth: 2 }),
      Plot.ruleY(runs, {
        x1: "start",
        x2: (run) => run.start + run.size,
        y: 0.5,
        stroke: "var(--accent)",
        strokeWidth: 4,
        insetLeft: 1,
        insetRight: 1,
        dy: 4,
      }),
      Plot.text(blockTicks(width, rows.length), { x: (block) => block + 0.5, frameAnchor: "bottom", dy: 18, text: String }),
      Plot.text(["block →"], { frameAnchor: "bottom-right", dy: 36, text: String }),
    ],
  });
  figure.replaceChildren(svg);

  const words = (cell) => {
    const best = least[cell.size - 1];
    const bestText = `${blocksText(best.start, best.size)}, ${numberText(best.value)}`;
    return [
      `${blocksText(cell.start, cell.size)}: ${measure} ${numberText(cell.value)}`,
      `n = ${cell.size}`,
      best.start === cell.start ? "the least of its row" : `least of its row: ${bestText}`,
    ].join(" · ");
  };
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  explore(svg, label, readout, {
    first: cellAt(least[0].start, 1),
    locate: (px, py) => {
      const size = Math.round(y.invert(py));
      return cellAt(Math.floor(x.invert(px) - size / 2 + 0.5), size);
    },
    move: (cell, dx, dy) => cellAt(cell.start + dx, cell.size + dy),
    outline: (cell) => ({
      x: x.apply(middle(cell) - 0.5),
      y: y.apply(cell.size + 0.5),
      width: x.apply(1) - x.apply(0),
      height: y.apply(1) - y.apply(2),
    }),
    words,
    idle: words((idle && cellAt(idle.start, idle.size)) ?? least[0]),
  });
  return scale;
}
