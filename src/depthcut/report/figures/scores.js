// The chosen scores, unit by unit.

const kindSymbols = { attn: "circle", mixer: "triangle", ffn: "diamond" };

function drawScores(width) {
  const figure = find("scores");
  const readout = find("scores-readout");
  figure.hidden = readout.hidden = !isScore(metric);
  if (!isScore(metric)) return;
  const chosen = metric;
  const shown = chosen.ofBlocks ? d3.groups(units, (unit) => unit.layer).map(([, inBlock]) => inBlock[0]) : units;
  const points = shown
    .map((unit) => ({
      block: unit.layer,
      kind: unit.kind,
      value: chosen.value(unit),
      error: chosen.error(unit) ?? 0,
      removed: chosen.ofBlocks ? isGone(unit.layer) : isRemoved(unit.key),
    }))
    .filter((point) => point.value != null);
  if (!points.length) {
    figure.hidden = readout.hidden = true;
    return;
  }
  const values = points.map((point) => point.value);
  const isLog = needsLog(values, 20);
  const lowest = d3.min(values);
  const kindsShown = new Set(points.map((point) => point.kind));
  const kinds = chosen.ofBlocks ? [undefined] : Object.keys(kindNames).filter((kind) => kindsShown.has(kind));
  const axis = valueAxis(values, isLog, chosen.name);
  const svg = Plot.plot({
    width,
    height: 220,
    marginLeft: 46,
    marginRight: 6,
    marginTop: 26,
    marginBottom: 34,
    style: plotStyle,
    x: {
      domain: [-0.5, numBlocks - 0.5],
      ticks: blockTicks(width, numBlocks),
      tickFormat: String,
      tickSize: 0,
      label: "block →",
    },
    y: axis,
    symbol: { domain: Object.keys(kindSymbols), range: Object.values(kindSymbols) },
    marks: [
      Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: axis.ticks }),
      ...kinds.map((kind) =>
        Plot.line(points, {
          x: "block",
          y: "value",
          filter: (point) => kind === undefined || point.kind === kind,
          stroke: "var(--quiet)",
          strokeOpacity: 0.55,
          strokeDasharray: kind === "ffn" ? "3 3" : null,
        }),
      ),
      Plot.ruleX(points, {
        filter: (point) => point.error > 0,
        x: "block",
        y1: (point) => (isLog ? Math.max(lowest / 2, point.value - point.error) : point.value - point.error),
        y2: (point) => point.value + point.error,
        stroke: (point) => (point.removed ? "var(--accent)" : "var(--ink)"),
      }),
      Plot.dot(points, {
        x: "block",
        y: "value",
        symbol: chosen.ofBlocks ? "circle" : "kind",
        r: width < 500 ? 3 : 3.75,
        fill: (point) => (point.removed ? "var(--paper)" : "var(--ink)"),
        stroke: (point) => (point.removed ? "var(--accent)" : "var(--ink)"),
        strokeWidth: 1.75,
      }),
    ],
  });
  const measure = make("span", { class: "measure" }, chosen.measure);
  figure.replaceChildren(make("figcaption", {}, measure, ...scoreKeys(kinds, points)), svg);

  const pointText = ({ block, kind, value }) =>
    `${chosen.ofBlocks ? `block ${block}` : `${block}.${kind}`}, ${numberText(value)}`;
  const [least, greatest] = [d3.least(points, (point) => point.value), d3.greatest(points, (point) => point.value)];
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  const unitWidth = x.apply(1) - x.apply(0);
  explore(svg, `${chosen.name} of every unit`, readout, {
    first: { block: 0 },
    idle: `least: ${pointText(least)} · greatest: ${pointText(greatest)}`,
    locate: (px) => {
      const block = Math.round(x.invert(px));
      return block >= 0 && block < numBlocks ? { block } : undefined;
    },
    move: ({ block }, dx) => (block + dx >= 0 && block + dx < numBlocks ? { block: block + dx } : undefined),
    outline: ({ block }) => ({
      x: x.apply(block) - unitWidth / 2,
      y: y.range[1] - 4,
      width: unitWidth,
      height: y.range[0] - y.range[1] + 8,
    }),
    words: ({ block }) => {
      const there = points.filter((point) => point.block === block);
      const texts = there.map((point) => {
        const name = chosen.ofBlocks ? chosen.name : kindNames[point.kind];
        return `${name} ${numberText(point.value)}${errorText(point.error)}${point.removed ? ", removed" : ""}`;
      });
      return [`block ${block}`, ...texts].join(" · ");
    },
  });
}

function scoreKeys(kinds, points) {
  const symbolKey = (symbol, removed, text) => {
    const path = d3
      .create("svg:path")
      .attr("d", d3.symbol(d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`], 40)())
      .attr("transform", "translate(7 7)")
      .attr("fill", removed ? "var(--paper)" : "var(--ink)")
      .attr("stroke", removed ? "var(--accent)" : "var(--ink)")
      .attr("stroke-width", 1.75);
    const svg = d3.create("svg").attr("width", 14).attr("height", 14).attr("aria-hidden", true);
    svg.append(() => path.node());
    return make("span", {}, svg.node(), text);
  };
  return [
    ...kinds.filter(Boolean).map((kind) => symbolKey(kindSymbols[kind], false, kindNames[kind])),
    ...(points.some((point) => point.removed) ? [symbolKey("circle", true, "removed")] : []),
  ];
}
