// The figures of the report page, drawn from the JSON in it. Text is only ever set as text, colours only as CSS
// variables, so that the reader's colour scheme and paper need no redraw.
"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const numBlocks = data.plan.model.num_blocks;
  const kindNames = { attn: "attention", mixer: "mixer", ffn: "FFN" };
  const kindSymbols = { attn: "circle", mixer: "triangle", ffn: "diamond" };

  // Numbers in words.

  function numberText(value) {
    const magnitude = Math.abs(value);
    const isPlain = magnitude === 0 || (magnitude >= 1e-4 && magnitude < 1e6);
    return d3.format(isPlain ? ".4~r" : ".3~e")(value);
  }

  const errorText = (error) => (error ? ` ± ${d3.format(".2~r")(error)}` : "");
  const parametersText = (count) => `${d3.format(".4~r")(count / 1e6)} M parameters`;
  const percentText = (fraction) => `${d3.format(".1f")(100 * fraction)} %`;

  function bytesText(count) {
    const power = count < 1024 ? 0 : Math.min(3, Math.floor(Math.log2(count) / 10));
    return `${d3.format(".4~r")(count / 1024 ** power)} ${["B", "KiB", "MiB", "GiB"][power]}`;
  }

  const blocksText = (first, size) => (size === 1 ? `block ${first}` : `blocks ${first}–${first + size - 1}`);

  // The model and what left it.

  const units = Object.entries(data.unit_sizes).map(([key, size]) => {
    const [layer, kind] = key.split(".");
    return { key, layer: Number(layer), kind, parameters: size.parameters, kvBytes: size.kv_bytes_per_token };
  });
  const unitByKey = new Map(units.map((unit) => [unit.key, unit]));
  const stepOf = new Map(
    data.plan.steps.flatMap((step, i) => step.remove.map((key) => [key, { order: i + 1, applied: step.applied }])),
  );
  const isRemoved = (key) => stepOf.get(key)?.applied ?? false;
  const isGone = (block) => {
    const inBlock = units.filter((unit) => unit.layer === block);
    return inBlock.length > 0 && inBlock.every((unit) => isRemoved(unit.key));
  };
  const goneBlocks = d3.range(numBlocks).filter(isGone);

  // Metrics: the scores, and the sizes of the units.

  const metrics = (data.scores?.scores ?? []).map((scores) => ({
    group: scores.unit === "block" ? "Blocks" : "Sublayers",
    name: scores.metric,
    measure: scores.measure,
    ofBlocks: scores.unit === "block",
    value: (unit) => scores.values[scores.unit === "block" ? unit.layer : unit.key],
    error: (unit) => scores.standard_errors?.[scores.unit === "block" ? unit.layer : unit.key],
    text: numberText,
  }));
  metrics.push(
    { group: "Sizes", name: "parameters", measure: "", value: (unit) => unit.parameters, text: parametersText },
    { group: "Sizes", name: "KV bytes per token", measure: "", value: (unit) => unit.kvBytes, text: bytesText },
  );
  const isSize = (metric) => metric.group === "Sizes";
  const preferredGroup = data.plan.unit === "block" ? "Blocks" : "Sublayers";
  let metric = metrics.find((candidate) => candidate.group === preferredGroup) ?? metrics[0];

  // Scales and colours.

  // Scores of the first and last block are often ten times those between: a linear scale would show only these two.
  function needsLog(values, ratio) {
    const [low, high] = d3.extent(values);
    return low > 0 && high / low >= ratio;
  }

  function colourScale(values) {
    const [low, high] = d3.extent(values);
    const isLog = needsLog(values, 20);
    const toFraction = low < high ? (isLog ? d3.scaleLog : d3.scaleLinear)([low, high], [0, 1]) : () => 0.5;
    return { low, high, isLog, colour: (value) => shade(toFraction(value)) };
  }

  function shade(fraction) {
    const lower = d3.format(".1f")(100 * Math.min(1, 2 * fraction));
    const upper = d3.format(".1f")(100 * Math.max(0, 2 * fraction - 1));
    const middle = `color-mix(in oklab, var(--scale-low), var(--scale-middle) ${lower}%)`;
    return `color-mix(in oklab, ${middle}, var(--scale-high) ${upper}%)`;
  }

  // What a linear or logarithmic y axis over these values needs; d3's own log ticks crowd a short axis.
  function valueAxis(values, isLog, label) {
    const common = { label, tickSize: 0 };
    if (!isLog) return { ...common, zero: true, nice: true, ticks: 5 };
    const domain = [0.8 * d3.min(values), 1.25 * d3.max(values)];
    const decades = d3.range(Math.floor(Math.log10(domain[0])), Math.ceil(Math.log10(domain[1])) + 1);
    const steps = Math.log10(domain[1] / domain[0]) > 2.5 ? [1] : [1, 2, 5];
    const ticks = decades
      .flatMap((decade) => steps.map((step) => Number(`${step}e${decade}`)))
      .filter((tick) => tick >= domain[0] && tick <= domain[1]);
    return { ...common, type: "log", domain, ticks, tickFormat: "~r" };
  }

  function blockTicks(width) {
    const step = [1, 2, 5, 10, 20, 50].find((candidate) => (candidate * width) / numBlocks >= 26) ?? 100;
    return d3.range(0, numBlocks, step);
  }

  // Elements.

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const find = (id) => document.getElementById(id);

  function read(readout, text, idle) {
    readout.textContent = text ?? idle;
    readout.classList.toggle("idle", text === undefined);
  }

  const plotStyle = { background: "none", fontSize: "12px", fontFamily: "inherit", overflow: "visible" };

  /**
   * Makes a chart readable by pointer, touch and arrow keys: the item there is outlined and told in the readout.
   * `locate` gives the item at a point, `move` the one next to an item, `outline` its box, `words` its text; `first`
   * is where the keys begin, `idle` the text while nothing is chosen.
   */
  function explore(svg, label, readout, { locate, move, outline, words, first, idle }) {
    const box = d3.select(svg).append("rect").attr("fill", "none").attr("stroke", "var(--ink)").attr("stroke-width", 2);
    let current;
    const show = (item) => {
      current = item;
      const { x, y, width, height } = item ? outline(item) : { x: 0, y: 0, width: 0, height: 0 };
      box.attr("x", x).attr("y", y).attr("width", width).attr("height", height).attr("rx", 1.5);
      box.attr("visibility", item ? "visible" : "hidden");
      read(readout, item && words(item), idle);
    };
    d3.select(svg)
      .attr("tabindex", 0)
      .attr("role", "img")
      .attr("aria-label", `${label}. Arrow keys read it; the numbers are also in a table below.`)
      .on("pointermove pointerdown", (event) => {
        const item = locate(...d3.pointer(event, svg));
        if (item) show(item);
      })
      .on("pointerleave", (event) => {
        if (event.pointerType === "mouse" && document.activeElement !== svg) show(undefined);
      })
      .on("blur", () => show(undefined))
      .on("keydown", (event) => {
        const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
        if (!(event.key in directions)) return;
        event.preventDefault();
        show(current ? (move(current, ...directions[event.key]) ?? current) : first);
      });
    show(undefined);
  }

  // The map.

  const frontKinds = ["attn", "mixer"].filter((kind) => units.some((unit) => unit.kind === kind));
  const hasBothInABlock = units.some((unit) => unit.kind === "mixer" && unitByKey.has(`${unit.layer}.attn`));
  const mapRows = [
    ...(hasBothInABlock || frontKinds.length < 2 ? frontKinds.map((kind) => [kind]) : [frontKinds]),
    ...(units.some((unit) => unit.kind === "ffn") ? [["ffn"]] : []),
  ];
  const rowNames = { attn: "attn", mixer: "mixer", ffn: "FFN" };

  function unitWords(unit) {
    const value = metric.value(unit);
    const step = stepOf.get(unit.key);
    return [
      unit.key,
      isSize(metric) || value == null
        ? ""
        : `${metric.name} ${numberText(value)}${errorText(metric.error(unit))}`,
      parametersText(unit.parameters),
      unit.kvBytes ? `${bytesText(unit.kvBytes)} KV per token` : "",
      step ? (step.applied ? `removed in step ${step.order}` : `step ${step.order} of the path, kept here`) : "kept",
    ]
      .filter(Boolean)
      .join(" · ");
  }

  function drawMap(width) {
    const map = find("map");
    const readout = find("map-readout");
    const hint = "Point at a cell, or select one and use the arrow keys.";
    const finest = 24; // px a cell: two digits fit, and a finger
    const perLine = Math.ceil(numBlocks / Math.ceil((numBlocks * finest) / (width - 46)));
    const values = units.map(metric.value).filter((value) => value != null);
    const scale = colourScale(values);
    const cells = [];

    const lines = d3.range(0, numBlocks, perLine).map((start) => {
      const blocks = d3.range(start, Math.min(start + perLine, numBlocks));
      const rows = mapRows.map((kinds, row) => {
        const head = make("span", { role: "rowheader" }, kinds.map((kind) => rowNames[kind]).join("/"));
        const inRow = blocks.map((block) => {
          const unit = kinds.map((kind) => unitByKey.get(`${block}.${kind}`)).find(Boolean);
          if (!unit) return make("span", { role: "gridcell", class: "cell absent" });
          const cell = make("span", { role: "gridcell", class: "cell", tabindex: -1, "aria-label": unitWords(unit) });
          const value = metric.value(unit);
          if (value != null) cell.style.setProperty("--fill", scale.colour(value));
          if (isRemoved(unit.key)) {
            cell.classList.add("removed");
            cell.textContent = stepOf.get(unit.key).order;
          }
          const tell = () => read(readout, unitWords(unit), hint);
          cell.addEventListener("pointerenter", tell);
          cell.addEventListener("click", () => cell.focus());
          cell.addEventListener("focus", tell);
          cells.push({ cell, block, row });
          return cell;
        });
        return make("div", { role: "row" }, head, ...inRow);
      });
      const gap = Math.ceil((18 * perLine) / (width - 46));
      const numbers = blocks.map((block) =>
        make("span", { role: "columnheader" }, gap === 1 || (block - start) % 5 === 0 ? String(block) : ""),
      );
      rows.push(make("div", { role: "row" }, make("span", { role: "rowheader" }, "block"), ...numbers));
      return make("div", { class: "line", role: "presentation", style: `--columns: ${perLine}` }, ...rows);
    });
    map.replaceChildren(...lines);
    map.setAttribute("role", "grid");
    map.setAttribute("aria-label", `Units of the model by ${metric.name}`);
    map.onpointerleave = () => {
      if (!map.contains(document.activeElement)) read(readout, undefined, hint);
    };
    map.onkeydown = (event) => {
      const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const here = cells.find(({ cell }) => cell === document.activeElement);
      if (!(event.key in directions) || !here) return;
      event.preventDefault();
      const [blocks, rows] = directions[event.key];
      const next = cells.find(({ block, row }) => block === here.block + blocks && row === here.row + rows);
      if (!next) return;
      here.cell.tabIndex = -1;
      next.cell.tabIndex = 0;
      next.cell.focus();
    };
    if (cells.length) cells[0].cell.tabIndex = 0;
    read(readout, undefined, hint);

    find("map-low").textContent = scale.low == null ? "" : metric.text(scale.low);
    find("map-high").textContent = scale.high == null ? "" : metric.text(scale.high);
    find("map-scale").textContent = scale.isLog ? "(log scale)" : "";
  }

  // The chosen scores.

  function drawScores(width) {
    const figure = find("scores");
    const readout = find("scores-readout");
    figure.hidden = readout.hidden = isSize(metric);
    if (isSize(metric)) return;
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
        ticks: blockTicks(width),
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

  // The path.

  const denseParameters = data.measurements.findLast((m) => m.name === "parameters" && m.model === "dense")?.value;
  const allParameters = denseParameters ?? d3.sum(units, (unit) => unit.parameters);

  function curve(plan) {
    let removed = 0;
    return plan.steps
      .map((step, i) => {
        removed += d3.sum(step.remove, (key) => unitByKey.get(key)?.parameters ?? 0);
        return { ...step, order: i + 1, share: removed / allParameters, method: plan.method };
      })
      .filter((step) => step.objective != null);
  }

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

  function drawPath(width) {
    const figure = find("path");
    if (!figure) return;
    const steps = curve(data.plan);
    const others = data.comparisons.filter((plan) => plan.objective === data.plan.objective).map(curve);
    const ends = others.map((points) => points.at(-1)).filter(Boolean);
    const values = [steps, ...others].flat().map((step) => step.objective);
    const axis = valueAxis(values, needsLog(values, 100), data.plan.objective);
    const cut = steps.filter((step) => step.applied).at(-1);
    const isCutLate = cut && cut.share > 0.7 * steps.at(-1).share;
    const svg = Plot.plot({
      width,
      height: 280,
      marginLeft: 46,
      marginRight: others.length ? 84 : 16,
      marginTop: 30,
      marginBottom: 38,
      style: plotStyle,
      x: {
        zero: true,
        percent: true,
        ticks: Math.max(3, Math.min(8, width / 90)),
        tickSize: 0,
        label: denseParameters ? "parameters removed, % →" : "parameters of the blocks removed, % →",
        labelAnchor: "right",
      },
      y: axis,
      marks: [
        Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: axis.ticks }),
        ...others.map((points) => Plot.line(points, { x: "share", y: "objective", stroke: "var(--quiet)" })),
        Plot.text(ends, { x: "share", y: "objective", text: "method", textAnchor: "start", dx: 8 }),
        cut && Plot.ruleX([cut], { x: "share", stroke: "var(--accent)", strokeDasharray: "2 3" }),
        Plot.line(steps, { x: "share", y: "objective", stroke: "var(--ink)", strokeWidth: 1.75 }),
        Plot.dot(steps, {
          x: "share",
          y: "objective",
          r: steps.length > width / 14 ? 2.5 : 4,
          fill: (step) => (step.applied ? "var(--accent)" : "var(--paper)"),
          stroke: (step) => (step.applied ? "var(--accent)" : "var(--ink)"),
          strokeWidth: 1.75,
        }),
        cut &&
          Plot.text([cut], {
            x: "share",
            frameAnchor: "top",
            textAnchor: isCutLate ? "end" : "start",
            dx: isCutLate ? -7 : 7,
            dy: 4,
            text: () => "this model",
            fill: "var(--accent)",
          }),
      ],
    });
    figure.replaceChildren(svg);

    const words = (step) =>
      [
        `step ${step.order}: ${step.remove.join(", ")}`,
        `${data.plan.objective} ${numberText(step.objective)}`,
        `${percentText(step.share)} of the parameters removed`,
        step.applied ? "in this model" : "not in this model",
      ].join(" · ");
    const [x, y] = [svg.scale("x"), svg.scale("y")];
    explore(svg, `${data.plan.objective} after every removal`, find("path-readout"), {
      first: steps[0],
      locate: (px) => d3.least(steps, (step) => Math.abs(x.apply(step.share * 100) - px)),
      move: (step, dx) => steps[steps.indexOf(step) + dx],
      outline: (step) => ({ x: x.apply(step.share * 100) - 7, y: y.apply(step.objective) - 7, width: 14, height: 14 }),
      words,
      idle: words(cut ?? steps[0]),
    });
  }

  // The angular distances.

  function drawAngular(width) {
    const figure = find("angular");
    if (!figure) return;
    const rows = data.scores.angular;
    const cells = rows.flatMap((row, start) => row.map((distance, i) => ({ start, size: i + 1, distance })));
    const least = d3.groups(cells, (cell) => cell.size).map(([, sameSize]) => d3.least(sameSize, (c) => c.distance));
    const cellAt = (start, size) =>
      size >= 1 && start >= 0 && rows[start]?.[size - 1] != null
        ? { start, size, distance: rows[start][size - 1] }
        : undefined;
    const runs = [];
    for (const block of goneBlocks) {
      const last = runs.at(-1);
      if (last && last.start + last.size === block) last.size += 1;
      else runs.push({ start: block, size: 1 });
    }
    const numRows = d3.max(cells, (cell) => cell.size);
    const scale = colourScale(cells.map((cell) => cell.distance));
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
      x: { domain: [0, numBlocks], axis: null },
      y: { domain: [0.5, numRows + 0.5] },
      color: { type: "identity" },
      marks: [
        Plot.axisY(d3.range(rowStep, numRows + 1, rowStep), { tickSize: 0, label: "n blocks", tickFormat: String }),
        Plot.rect(cells, { ...bounds, fill: (cell) => scale.colour(cell.distance), inset: numBlocks > 48 ? 0 : 0.5 }),
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
        Plot.text(blockTicks(width), { x: (block) => block + 0.5, frameAnchor: "bottom", dy: 18, text: String }),
        Plot.text(["block →"], { frameAnchor: "bottom-right", dy: 36, text: String }),
      ],
    });
    figure.replaceChildren(svg);

    const words = (cell) => {
      const best = least[cell.size - 1];
      const bestText = `${blocksText(best.start, best.size)}, ${numberText(best.distance)}`;
      return [
        `${blocksText(cell.start, cell.size)}: distance ${numberText(cell.distance)}`,
        `n = ${cell.size}`,
        best.start === cell.start ? "the least of its row" : `least of its row: ${bestText}`,
      ].join(" · ");
    };
    const widest = d3.greatest(runs, (run) => run.size);
    const [x, y] = [svg.scale("x"), svg.scale("y")];
    explore(svg, "Angular distance across every window of blocks", find("angular-readout"), {
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
      idle: words((widest && cellAt(widest.start, widest.size)) ?? least[0]),
    });
    find("angular-low").textContent = numberText(scale.low);
    find("angular-high").textContent = numberText(scale.high) + (scale.isLog ? " (log scale)" : "");
  }

  // The page.

  const select = find("metric");
  for (const [group, members] of d3.groups(metrics, (candidate) => candidate.group)) {
    const options = members.map((member) => {
      // The closed list does not show the group, and most metrics are there for blocks and for sublayers.
      const isAlone = metrics.filter(({ name }) => name === member.name).length === 1;
      const name = isAlone ? member.name : `${member.name} of ${group.toLowerCase()}`;
      return make("option", { value: metrics.indexOf(member) }, name);
    });
    select.append(make("optgroup", { label: group }, ...options));
  }
  select.value = metrics.indexOf(metric);
  for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;

  const contentWidth = () => Math.floor(find("map").getBoundingClientRect().width);
  const drawChosen = () => {
    drawMap(contentWidth());
    drawScores(contentWidth());
  };
  select.addEventListener("change", () => {
    metric = metrics[select.value];
    drawChosen();
  });

  let drawnWidth = 0;
  function draw() {
    if (contentWidth() === drawnWidth) return;
    drawnWidth = contentWidth();
    drawChosen();
    drawPath(drawnWidth);
    drawTraining(drawnWidth);
    drawAngular(drawnWidth);
  }
  draw();
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(document.querySelector("main"));

  // Paper cannot be unfolded.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const details of unfolded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of unfolded) details.open = false;
  });
}
