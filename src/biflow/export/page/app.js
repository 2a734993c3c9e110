import { startDrawing } from "./draw.js";
import { noiseFor } from "./noise.js";
import { columnsOf, drawGrid, toLevels } from "./pictures.js";

const MOST_CHIPS = 16; // classes that are shown side by side; more become a list
const READINGS = 20; // times that the median is taken of
const FIRST_PASSES = 4; // before anyone moves a slider, so that there is a time to show
const WALK = 4000; // milliseconds from one noise to the next
const MOST_SEED = 2 ** 31;
const TURN = "turn"; // the choice of all classes, one after another

const $ = (id) => document.getElementById(id);
const at = { path: 0 }; // what sliders only show in rounded steps
let card, ask, running, wanted, drawn, walking;
let times = [];
let timed = "";

// ---- the worker: one question at a time ----

function startWorker() {
  const worker = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error) reject(new Error(data.error));
    else resolve(data.result);
  };
  worker.onerror = (event) => {
    for (const { reject } of waiting.values()) reject(new Error(event.message || "the worker did not start"));
    waiting.clear();
  };
  return (question) =>
    new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      worker.postMessage({ id: last, ...question });
    });
}

// ---- what is asked for ----

function settings() {
  const label = new FormData($("controls")).get("label") ?? TURN;
  return {
    label,
    guidance: canGuide(label) ? Number($("guidance").value) : 0,
    path: at.path,
    seed: seedIn($("seed").value),
    count: Number($("count").value),
  };
}

const canGuide = (label) => card.guidance !== "none" && label !== String(card.null_label);
const seedIn = (text) => Math.min(MOST_SEED, Math.max(0, Math.floor(Number(text)) || 0));

function labelsOf({ label, count }) {
  if (label !== TURN) return Array(count).fill(Number(label));
  return Array.from({ length: count }, (_, place) => place % Math.max(1, card.num_classes));
}

// ---- noise ----

const kept = new Map(); // of the last few seeds

function noiseOf(seed, count) {
  const key = `${seed} ${count}`;
  if (!kept.has(key)) {
    if (kept.size > 3) kept.delete(kept.keys().next().value);
    kept.set(key, noiseFor(seed, count, sizeOfNoise()));
  }
  return kept.get(key);
}

const sizeOfNoise = () => card.noise_shape[0] * card.noise_shape[1];

/** Along the great circle from each image's noise to its noise of the next seed. */
function noiseBetween({ seed, path, count }) {
  const from = noiseOf(seed, count);
  if (!path) return from.slice();
  const [to, size] = [noiseOf(seed + 1, count), sizeOfNoise()];
  const mixed = new Float32Array(from.length);
  for (let start = 0; start < from.length; start += size) {
    let [product, first, second] = [0, 0, 0];
    for (let i = start; i < start + size; i++) {
      product += from[i] * to[i];
      first += from[i] ** 2;
      second += to[i] ** 2;
    }
    const angle = Math.acos(Math.min(1, Math.max(-1, product / Math.sqrt(first * second))));
    const [a, b] = [Math.sin((1 - path) * angle) / Math.sin(angle), Math.sin(path * angle) / Math.sin(angle)];
    for (let i = start; i < start + size; i++) mixed[i] = a * from[i] + b * to[i];
  }
  return mixed;
}

// ---- the loop: the latest wish is served, those before it are dropped ----

function refresh() {
  wanted = settings();
  showSettings(wanted);
  running ??= serve().finally(() => (running = undefined));
}

async function serve() {
  try {
    while (wanted) {
      const now = wanted;
      wanted = undefined;
      const labels = labelsOf(now);
      const strengths = new Float32Array(now.count).fill(now.guidance);
      const question = { noise: noiseBetween(now), shape: card.noise_shape, labels, strengths };
      const { values, dims, milliseconds } = await ask({ sample: question });
      drawGrid($("grid"), values, dims);
      showTime(milliseconds, now.count);
      drawn = now;
      $("grid").dataset.shown = JSON.stringify(now);
    }
  } catch (error) {
    complain(`The model could not be run: ${error.message}`);
  }
}

// ---- showing ----

function showSettings({ label, guidance, path, seed, count }) {
  $("guidance").disabled = !canGuide(label);
  $("guidance-value").textContent = canGuide(label) ? guidance.toFixed(2) : "needs a class";
  $("path-value").textContent = `${seed} → ${seed + 1}, ${Math.round(100 * path)} %`;
  const what = label === TURN ? "of all classes in turn" : label === String(card.null_label) ? "of no class" : `of class ${card.class_names[label]}`;
  $("grid").setAttribute("aria-label", `Grid of ${count} samples${card.num_classes ? ` ${what}` : ""}`);
  $("same").textContent = path ? "Between two noises there is no command; where the way begins, it is:" : "The same images from Python:";
  const options = [`--num ${count}`, `--seed ${seed}`];
  if (label !== TURN) options.push(`--label ${nameFor(label)}`);
  if (guidance) options.push(`--guidance ${guidance}`);
  $("command").textContent = `biflow sample MODEL ${options.join(" ")} --out grid.png`;
}

/** A class as the command takes it: it reads a word as a name first, then as a number, with any zeros before it. */
function nameFor(label) {
  const name = card.class_names[label];
  if (name === undefined || card.class_names.indexOf(name) !== Number(label)) {
    let number = label;
    while (card.class_names.includes(number)) number = `0${number}`;
    return number;
  }
  return /^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", `'\\''`)}'`;
}

function showTime(milliseconds, count) {
  if (timed !== String(count)) {
    [times, timed] = [[], String(count)]; // the first pass of a size also makes room for it
    return;
  }
  times = [...times, milliseconds].slice(-READINGS);
  const median = [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
  const digits = (value) => value.toFixed(value < 10 ? 1 : 0);
  $("time").textContent = `${digits(median)} ms a grid of ${count}, ${(median / count).toFixed(2)} ms an image (median of ${times.length})`;
}

function complain(message) {
  stopWalk();
  $("notice").classList.remove("late");
  $("notice").replaceChildren(Object.assign(document.createElement("p"), { textContent: message }));
  $("notice").hidden = false;
}

// ---- samples or a drawing ----

let showDrawing; // once it was opened

function makeModes() {
  $("modes").hidden = !card.drawing;
  $("modes").addEventListener("change", ({ target }) => showMode(target.value));
}

function showMode(mode) {
  stopWalk();
  $("app").hidden = $("from-python").hidden = mode !== "samples";
  $("draw").hidden = mode !== "draw";
  if (mode !== "draw") return;
  showDrawing ??= startDrawing({ card, ask, sampleAt, freshNoise, complain });
  showDrawing();
}

/** The grid's image at a place, counted on from its end to its beginning: grey levels (channels, height, width). */
async function sampleAt(place) {
  const now = settings();
  const [i, size] = [place % now.count, sizeOfNoise()];
  const noise = noiseBetween(now).slice(i * size, (i + 1) * size);
  const strengths = new Float32Array([now.guidance]);
  const question = { noise, shape: card.noise_shape, labels: [labelsOf(now)[i]], strengths };
  return toLevels((await ask({ sample: question })).values);
}

/** The noise of one image, of the chosen seed. */
const freshNoise = () => noiseOf(settings().seed, 1);

// ---- walking, saving ----

function stopWalk() {
  walking = undefined;
  $("play").setAttribute("aria-pressed", "false");
  $("play").textContent = "Walk";
  $("play").setAttribute("aria-label", "Walk from noise to noise");
}

function startWalk() {
  $("play").setAttribute("aria-pressed", "true");
  $("play").textContent = "Stop";
  $("play").setAttribute("aria-label", "Stop the walk");
  let before = performance.now();
  walking = (now) => {
    if (!walking) return;
    setPath(at.path + Math.max(0, now - before) / WALK);
    before = now;
    requestAnimationFrame(walking);
  };
  requestAnimationFrame(walking);
}

function setPath(path) {
  if (path >= 1) $("seed").value = seedIn($("seed").value) + 1;
  at.path = path >= 1 ? 0 : path;
  $("path").value = Math.round(100 * at.path);
  refresh();
}

function savePng() {
  const grid = $("grid");
  const times = Math.max(1, Math.ceil(1024 / grid.width));
  const large = Object.assign(document.createElement("canvas"), { width: times * grid.width, height: times * grid.height });
  const pen = large.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = getComputedStyle(grid).backgroundColor; // between the images
  pen.fillRect(0, 0, large.width, large.height);
  pen.drawImage(grid, 0, 0, large.width, large.height);
  large.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob) });
    link.download = `samples_seed${drawn.seed}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// ---- the form ----

function makeClasses() {
  const choices = [...card.class_names.slice(0, card.num_classes).map((name, label) => [String(label), name])];
  choices.unshift([TURN, "all"]);
  choices.push([String(card.null_label), "none"]);
  if (!card.num_classes) {
    $("classes").remove();
    $("guidance-field").remove();
  } else if (choices.length - 2 > MOST_CHIPS) {
    const list = Object.assign(document.createElement("select"), { name: "label" });
    list.setAttribute("aria-label", "Class");
    list.append(...choices.map(([value, name]) => new Option(name, value)));
    $("classes").append(list);
  } else {
    const chips = Object.assign(document.createElement("div"), { className: "chips" });
    chips.append(...choices.map(([value, name]) => chip(value, name)));
    $("classes").append(chips);
  }
}

function chip(value, name) {
  const label = Object.assign(document.createElement("label"), { className: "chip" });
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "label", value, checked: value === TURN });
  label.append(input, Object.assign(document.createElement("span"), { textContent: name }));
  return label;
}

function makeForm() {
  makeClasses();
  const columns = columnsOf(card.image_size);
  const usual = columns < 10 ? 2 : 6; // rows
  $("count").append(...[1, 2, 4, 6, 10].map((rows) => new Option(rows * columns, rows * columns, false, rows === usual)));
  $("guidance").max = card.slider_guidance;
  $("controls").addEventListener("input", ({ target }) => {
    if (target.id === "path") {
      stopWalk();
      at.path = Number(target.value) / 100;
    }
    refresh();
  });
  $("seed").addEventListener("change", ({ target }) => (target.value = seedIn(target.value)));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("fresh").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    refresh();
  });
  $("play").addEventListener("click", () => (walking ? stopWalk() : startWalk()));
  $("save").addEventListener("click", savePng);
}

async function start() {
  $("notice").classList.remove("late");
  $("notice").replaceChildren(Object.assign(document.createElement("p"), { textContent: "Loading the model and its runtime, once…" }));
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json: ${response.status} ${response.statusText}`);
  card = await response.json();
  ask = startWorker();
  await ask({ load: "model.onnx" });
  makeForm();
  makeModes();
  const sides = `${card.image_size} × ${card.image_size}`;
  const classes = card.num_classes ? `, ${card.num_classes} classes` : "";
  $("model").textContent = `Images of ${sides} pixels${classes}. Weights ${card.weights_sha256.slice(0, 12)}, biflow ${card.biflow_version}.`;
  for (const id of ["app", "footer"]) $(id).hidden = false;
  $("notice").hidden = true;
  for (let pass = 0; pass < FIRST_PASSES; pass++) {
    refresh();
    await running;
  }
}

start().catch((error) => complain(`The page could not start: ${error.message}`));
