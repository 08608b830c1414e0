// The angular distances of every window of blocks, and the windows that are removed.

function drawAngular(width) {
  const figure = find("angular");
  if (!figure) return;
  const runs = [];
  for (const block of d3.range(numBlocks).filter(isGone)) {
    const last = runs.at(-1);
    if (last && last.start + last.size === block) last.size += 1;
    else runs.push({ start: block, size: 1 });
  }
  const scale = drawWindows(figure, width, find("angular-readout"), {
    rows: data.scores.angular,
    runs,
    label: "Angular distance across every window of blocks",
    measure: "distance",
    idle: d3.greatest(runs, (run) => run.size),
  });
  find("angular-low").textContent = numberText(scale.low);
  find("angular-high").textContent = numberText(scale.high) + (scale.isLog ? " (log scale)" : "");
}
