// The page of one run: what is drawn, and what is drawn again when a choice or the width changes.

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
const slider = find("steps");

select.addEventListener("change", () => {
  metric = metrics[select.value];
  drawMap(contentWidth());
  drawScores(contentWidth());
});

// Everything that shows what is removed; the figures once a frame at most, however fast the slider moves.
function drawRemoved() {
  if (slider) drawSteps();
  markMap();
  drawScores(contentWidth());
  drawPath(contentWidth(), showSteps);
  drawAngular(contentWidth());
}

let frame;
function showSteps(count) {
  numShown = count;
  slider.value = count;
  drawSteps();
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(drawRemoved);
}

if (slider) {
  slider.value = numShown;
  slider.addEventListener("input", () => showSteps(Number(slider.value)));
  find("download").addEventListener("click", downloadPlan);
}

let drawnWidth = 0;
function draw() {
  if (contentWidth() === drawnWidth) return;
  drawnWidth = contentWidth();
  drawMap(drawnWidth);
  drawRemoved();
  drawMemory(drawnWidth);
  drawTraining(drawnWidth);
  drawTasks(drawnWidth, data.tasks, ["dense", "pruned"]);
}
draw();
new ResizeObserver(() => requestAnimationFrame(draw)).observe(document.querySelector("main"));
unfoldForPaper();
