// Numbers in words.

function numberText(value) {
  const magnitude = Math.abs(value);
  const isPlain = magnitude === 0 || (magnitude >= 1e-4 && magnitude < 1e6);
  return d3.format(isPlain ? ".4~r" : ".3~e")(value);
}

const errorText = (error) => (error ? ` ± ${d3.format(".2~r")(error)}` : "");
const countText = (count) => `${d3.format(".4~r")(count / 1e6)} M`;
const parametersText = (count) => `${countText(count)} parameters`;
const percentText = (fraction) => `${d3.format(".1f")(100 * fraction)} %`;
const changeText = (before, after) => (before > after ? `−${percentText(1 - after / before)}` : "unchanged");

function bytesText(count) {
  const power = count < 1024 ? 0 : Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${d3.format(".4~r")(count / 1024 ** power)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}

const blocksText = (first, size) => (size === 1 ? `block ${first}` : `blocks ${first}–${first + size - 1}`);
const stepsText = (count) => `${count} ${count === 1 ? "step" : "steps"}`;
