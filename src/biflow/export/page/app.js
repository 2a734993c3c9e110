import { startDrawing } from "./draw.js";
import { sampleNoise } from "./noise.js";
import { columnsFor, drawGrid, toPixels } from "./pictures.js";

const MAX_CHIPS = 16; // with more classes, the chips become a drop-down list
const TIMED_RUNS = 20; // in the median
const INITIAL_RUNS = 4; // so that there is a time to show before the first input
const ANIMATION_MS = 4000; // from one seed to the next
const MAX_SEED = 2 ** 31;
const MAX_CACHED_NOISE = 4; // seeds
const ALL = "all"; // class choice: cycle through all classes

const $ = (id) => document.getElementById(id);
let card; // model.json
let request; // sends a request to the worker
let running, pending, rendered; // the render loop, and settings: to render next, rendered last
let interpolation = 0; // from this seed's noise to the next seed's; the slider shows it rounded
let animation;
let times = [];
let timedCount;

// ---- worker ----

function startWorker() {
  const worker = new Worker("worker.js", { type: "module" });
  const promises = new Map();
  let lastId = 0;
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = promises.get(data.id);
    promises.delete(data.id);
    if (data.error) reject(new Error(data.error));
    else resolve(data.result);
  };
  worker.onerror = (event) => {
    for (const { reject } of promises.values()) reject(new Error(event.message || "the worker failed to start"));
    promises.clear();
  };
  return (message) =>
    new Promise((resolve, reject) => {
      promises.set(++lastId, { resolve, reject });
      worker.postMessage({ id: lastId, ...message });
    });
}

// ---- settings ----

function readSettings() {
  const label = new FormData($("controls")).get("label") ?? ALL;
  return {
    label,
    guidance: canGuide(label) ? Number($("guidance").value) : 0,
    interpolation,
    seed: parseSeed($("seed").value),
    count: Number($("count").value),
  };
}

const canGuide = (label) => card.guidance !== "none" && label !== String(card.null_label);
const parseSeed = (text) => Math.min(MAX_SEED, Math.max(0, Math.floor(Number(text)) || 0));

function labelsFor({ label, count }) {
  if (label !== ALL) return Array(count).fill(Number(label));
  return Array.from({ length: count }, (_, i) => i % Math.max(1, card.num_classes));
}

// ---- noise ----

const noiseCache = new Map();

function cachedNoise(seed, count) {
  const key = `${seed} ${count}`;
  if (!noiseCache.has(key)) {
    if (noiseCache.size >= MAX_CACHED_NOISE) noiseCache.delete(noiseCache.keys().next().value);
    noiseCache.set(key, sampleNoise(seed, count, noiseSize()));
  }
  return noiseCache.get(key);
}

const noiseSize = () => card.noise_shape[0] * card.noise_shape[1];

/** Spherical interpolation from each image's noise for this seed to its noise for the next seed. */
function interpolatedNoise({ seed, interpolation: t, count }) {
  const from = cachedNoise(seed, count);
  if (!t) return from.slice();
  const [to, size] = [cachedNoise(seed + 1, count), noiseSize()];
  const mixed = new Float32Array(from.length);
  for (let start = 0; start < from.length; start += size) {
    let [product, fromSquared, toSquared] = [0, 0, 0];
    for (let i = start; i < start + size; i++) {
      product += from[i] * to[i];
      fromSquared += from[i] ** 2;
      toSquared += to[i] ** 2;
    }
    const angle = Math.acos(Math.min(1, Math.max(-1, product / Math.sqrt(fromSquared * toSquared))));
    const [a, b] = [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
    for (let i = start; i < start + size; i++) mixed[i] = a * from[i] + b * to[i];
  }
  return mixed;
}

// ---- render loop: renders the latest settings and drops earlier ones ----

function update() {
  pending = readSettings();
  showSettings(pending);
  running ??= render().finally(() => (running = undefined));
}

async function render() {
  try {
    while (pending) {
      const settings = pending;
      pending = undefined;
      const guidance = new Float32Array(settings.count).fill(settings.guidance);
      const input = { noise: interpolatedNoise(settings), shape: card.noise_shape, labels: labelsFor(settings), guidance };
      const { values, dims, milliseconds } = await request({ sample: input });
      drawGrid($("grid"), values, dims);
      showTime(milliseconds, settings.count);
      rendered = settings;
      $("grid").dataset.rendered = JSON.stringify(settings);
    }
  } catch (error) {
    showError(`The model failed to run: ${error.message}`);
  }
}

// ---- output ----

function showSettings({ label, guidance, interpolation: t, seed, count }) {
  $("guidance").disabled = !canGuide(label);
  $("guidance-value").textContent = canGuide(label) ? guidance.toFixed(2) : "needs a class";
  $("interpolate-value").textContent = `seed ${seed} → ${seed + 1}: ${Math.round(100 * t)}%`;
  const classes = label === ALL ? "of all classes" : label === String(card.null_label) ? "without a class" : `of class ${card.class_names[label]}`;
  $("grid").setAttribute("aria-label", `Grid of ${count} samples${card.num_classes ? ` ${classes}` : ""}`);
  $("command-note").textContent = t ? "Command for the images at 0% of the interpolation:" : "Command for the same images:";
  const options = [`--num ${count}`, `--seed ${seed}`];
  if (label !== ALL) options.push(`--label ${labelArgument(label)}`);
  if (guidance) options.push(`--guidance ${guidance}`);
  $("command").textContent = `biflow sample MODEL ${options.join(" ")} --out grid.png`;
}

/** A class as `--label` takes it: a name or, where that names another class or none, its index. */
function labelArgument(label) {
  const name = card.class_names[label];
  if (name === undefined || card.class_names.indexOf(name) !== Number(label)) {
    return `'#${label}'`;
  }
  return /^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", `'\\''`)}'`;
}

function showTime(milliseconds, count) {
  if (timedCount !== count) {
    [times, timedCount] = [[], count]; // the first run of a batch size is a warm-up
    return;
  }
  times = [...times, milliseconds].slice(-TIMED_RUNS);
  const median = [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
  const format = (value) => value.toFixed(value < 10 ? 1 : 0);
  $("time").textContent = `${count} images in ${format(median)} ms, ${(median / count).toFixed(2)} ms each (median of ${times.length})`;
}

function showError(message) {
  stopAnimation();
  showNotice(message);
}

function showNotice(message) {
  $("notice").classList.remove("delayed");
  $("notice").replaceChildren(Object.assign(document.createElement("p"), { textContent: message }));
  $("notice").hidden = false;
}

// ---- modes ----

let updateDrawing; // once the mode was opened

function makeModes() {
  $("modes").hidden = !card.drawing;
  $("modes").addEventListener("change", ({ target }) => showMode(target.value));
}

function showMode(mode) {
  stopAnimation();
  $("app").hidden = $("command-section").hidden = mode !== "sample";
  $("draw").hidden = mode !== "draw";
  if (mode !== "draw") return;
  updateDrawing ??= startDrawing({ card, request, sampleAt, imageNoise, showError });
  updateDrawing();
}

/** The grid's image at an index, modulo the number of images: pixels (channels, height, width). */
async function sampleAt(index) {
  const settings = readSettings();
  const [i, size] = [index % settings.count, noiseSize()];
  const noise = interpolatedNoise(settings).slice(i * size, (i + 1) * size);
  const guidance = new Float32Array([settings.guidance]);
  const input = { noise, shape: card.noise_shape, labels: [labelsFor(settings)[i]], guidance };
  return toPixels((await request({ sample: input })).values);
}

/** The noise of one image for the chosen seed. */
const imageNoise = () => cachedNoise(readSettings().seed, 1);

// ---- animation, saving ----

function stopAnimation() {
  animation = undefined;
  $("animate").setAttribute("aria-pressed", "false");
  $("animate").textContent = "Animate";
  $("animate").setAttribute("aria-label", "Animate the interpolation");
}

function startAnimation() {
  $("animate").setAttribute("aria-pressed", "true");
  $("animate").textContent = "Stop";
  $("animate").setAttribute("aria-label", "Stop the animation");
  let previous = performance.now();
  animation = (now) => {
    if (!animation) return;
    setInterpolation(interpolation + Math.max(0, now - previous) / ANIMATION_MS);
    previous = now;
    requestAnimationFrame(animation);
  };
  requestAnimationFrame(animation);
}

function setInterpolation(value) {
  if (value >= 1) $("seed").value = parseSeed($("seed").value) + 1;
  interpolation = value >= 1 ? 0 : value;
  $("interpolate").value = Math.round(100 * interpolation);
  update();
}

function savePng() {
  const grid = $("grid");
  const scale = Math.max(1, Math.ceil(1024 / grid.width));
  const enlarged = Object.assign(document.createElement("canvas"), { width: scale * grid.width, height: scale * grid.height });
  const context = enlarged.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.fillStyle = getComputedStyle(grid).backgroundColor; // between the images
  context.fillRect(0, 0, enlarged.width, enlarged.height);
  context.drawImage(grid, 0, 0, enlarged.width, enlarged.height);
  enlarged.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob) });
    link.download = `samples_seed${rendered.seed}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// ---- form ----

function makeClasses() {
  const choices = [...card.class_names.slice(0, card.num_classes).map((name, label) => [String(label), name])];
  choices.unshift([ALL, "all"]);
  choices.push([String(card.null_label), "none"]);
  if (!card.num_classes) {
    $("classes").remove();
    $("guidance-field").remove();
  } else if (choices.length - 2 > MAX_CHIPS) {
    const list = Object.assign(document.createElement("select"), { name: "label" });
    list.setAttribute("aria-label", "Class");
    list.append(...choices.map(([value, name]) => new Option(name, value)));
    $("classes").append(list);
  } else {
    const chips = Object.assign(document.createElement("div"), { className: "chips" });
    chips.append(...choices.map(([value, name]) => makeChip(value, name)));
    $("classes").append(chips);
  }
}

function makeChip(value, name) {
  const label = Object.assign(document.createElement("label"), { className: "chip" });
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "label", value, checked: value === ALL });
  label.append(input, Object.assign(document.createElement("span"), { textContent: name }));
  return label;
}

function makeForm() {
  makeClasses();
  const columns = columnsFor(card.image_size);
  const defaultRows = columns < 10 ? 2 : 6;
  $("count").append(...[1, 2, 4, 6, 10].map((rows) => new Option(rows * columns, rows * columns, false, rows === defaultRows)));
  $("guidance").max = card.slider_guidance;
  $("controls").addEventListener("input", ({ target }) => {
    if (target.id === "interpolate") {
      stopAnimation();
      interpolation = Number(target.value) / 100;
    }
    update();
  });
  $("seed").addEventListener("change", ({ target }) => (target.value = parseSeed(target.value)));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("new-seed").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    update();
  });
  $("animate").addEventListener("click", () => (animation ? stopAnimation() : startAnimation()));
  $("save").addEventListener("click", savePng);
}

async function start() {
  showNotice("Loading the model and ONNX Runtime…");
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json: ${response.status} ${response.statusText}`);
  card = await response.json();
  request = startWorker();
  await request({ load: "model.onnx" });
  makeForm();
  makeModes();
  const classes = card.num_classes ? `, ${card.num_classes} classes` : "";
  const [size, hash] = [card.image_size, card.weights_sha256.slice(0, 12)];
  $("model").textContent = `${size} × ${size} images${classes}. Weights: SHA\u2011256 ${hash}…, exported with biflow ${card.biflow_version}.`;
  for (const id of ["app", "footer"]) $(id).hidden = false;
  $("notice").hidden = true;
  for (let run = 0; run < INITIAL_RUNS; run++) {
    update();
    await running;
  }
}

start().catch((error) => showError(`The page failed to start: ${error.message}`));
