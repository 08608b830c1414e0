// The slider over the path: how large the model is after so many steps, what it costs, and how to make it.

function drawSteps() {
  const { parameters, kvBytes, y: objective } = states[numShown];
  const here = numShown === numApplied ? ", this model" : "";
  const count = `${numShown} of ${stepsText(plan.steps.length)}${here}`;
  const isPastCollapse = data.collapse != null && numShown > data.collapse;
  const texts = {
    removed: removedWords(),
    parameters: denseParameters
      ? `${countText(denseParameters - parameters)} (${changeText(denseParameters, denseParameters - parameters)})`
      : `${countText(parameters)} removed`,
    kv: `${bytesText(allKvBytes - kvBytes)} (${changeText(allKvBytes, allKvBytes - kvBytes)})`,
    objective: (objective == null ? "–" : numberText(objective)) + (isPastCollapse ? ", beyond the collapse" : ""),
    command: `${data.apply_command} --steps ${numShown}`,
    count,
  };
  for (const [name, text] of Object.entries(texts)) {
    const element = find(`steps-${name}`);
    if (element) element.textContent = text;
  }
  const spoken = [`${texts.removed} removed`, `parameters ${texts.parameters}`, `KV cache ${texts.kv}`];
  if (objective != null) spoken.push(`${plan.objective} ${texts.objective}`);
  find("steps").setAttribute("aria-valuetext", `${count}: ${spoken.join(", ")}`);
}

// The plan of the page with so many of its steps applied, as `depthcut apply` reads it.
function planShown() {
  const steps = plan.steps.map((step, i) => ({ ...step, applied: i < numShown }));
  return `${JSON.stringify({ ...plan, steps }, null, 2)}\n`;
}

function downloadPlan() {
  const url = URL.createObjectURL(new Blob([planShown()], { type: "application/json" }));
  make("a", { href: url, download: "plan.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
