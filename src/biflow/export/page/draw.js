// The Draw mode: classifies a drawing by the flow's likelihood, and edits it through its noise.

import { drawingNoise } from "./noise.js";
import { drawGrid, fromPixels } from "./pictures.js";

const MAX_BARS = 5;
const MAX_EDITS = 16; // with more classes, the drawing is decoded as the most likely ones
const SHORT_NAME = 4; // characters; longer class names get larger cells
const SOFT_EDGE = 0.4; // opacity of the pixels next to the brush, in greyscale images
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);
const cursor = { x: 0, y: 0 };
let page, size, noise, encoderLoaded;
let pixels; // 0 to 255, (channels, size, size)
let stroke, erasing; // the stroke in progress, the state of the Eraser button
let running, pending; // the render loop, and the drawing to render next
let nextSample = 0; // index in the grid

/** Set up the mode; options: card, request, sampleAt, imageNoise and showError of app.js.  Returns a function that updates it. */
export function startDrawing(options) {
  page = options;
  const { card } = page;
  size = card.image_size;
  pixels = new Uint8ClampedArray(card.channels * size * size);
  noise = drawingNoise(pixels.length, card.drawing);
  Object.assign($("drawing"), { width: size, height: size });
  $("drawing").setAttribute("aria-label", `Drawing of ${size} by ${size} pixels`);
  $("colour-field").hidden = card.channels === 1;
  $("edit-grid").classList.toggle("long-names", card.class_names.some((name) => name.length > SHORT_NAME));
  cursor.x = cursor.y = Math.floor(size / 2);
  addListeners();
  showHint("Loading the encoder…");
  encoderLoaded = page.request({ load: "encoder.onnx" });
  return update;
}

// ---- painting ----

function paintBrush(x, y, erase) {
  const radius = Math.floor(size / 32);
  const soft = page.card.channels === 1;
  for (let dy = -radius - 1; dy <= radius + 1; dy++) {
    for (let dx = -radius - 1; dx <= radius + 1; dx++) {
      const distance = Math.hypot(dx, dy);
      if (distance <= radius) paintPixel(x + dx, y + dy, erase, 1);
      else if (soft && !erase && distance <= radius + 1) paintPixel(x + dx, y + dy, erase, SOFT_EDGE);
    }
  }
}

function paintPixel(x, y, erase, opacity) {
  if (x < 0 || y < 0 || x >= size || y >= size) return;
  const { channels } = page.card;
  brushColour().slice(0, channels).forEach((level, channel) => {
    const i = (channel * size + y) * size + x;
    if (erase) pixels[i] = 0;
    else pixels[i] = channels === 1 ? Math.max(pixels[i], level * opacity) : level;
  });
}

/** Red, green and blue, 0 to 255. */
const brushColour = () => (page.card.channels === 1 ? [255] : [1, 3, 5].map((start) => parseInt($("colour").value.slice(start, start + 2), 16)));

function strokeTo(x, y) {
  const from = stroke.last ?? { x, y };
  const steps = Math.max(1, Math.abs(x - from.x), Math.abs(y - from.y));
  for (let step = 0; step <= steps; step++) {
    paintBrush(Math.round(from.x + ((x - from.x) * step) / steps), Math.round(from.y + ((y - from.y) * step) / steps), stroke.erase);
  }
  stroke.last = { x, y };
  update();
}

function pixelAt({ clientX, clientY }) {
  const box = $("drawing").getBoundingClientRect();
  return [(clientX - box.left) / box.width, (clientY - box.top) / box.height].map((fraction) => Math.floor(fraction * size));
}

function handleKey(key) {
  if (STEPS[key]) {
    cursor.x = Math.min(size - 1, Math.max(0, cursor.x + STEPS[key][0]));
    cursor.y = Math.min(size - 1, Math.max(0, cursor.y + STEPS[key][1]));
  } else {
    paintBrush(cursor.x, cursor.y, key !== " " || erasing);
    update();
  }
}

function showCursor(visible) {
  const percent = (count) => `${(100 * count) / size}%`;
  Object.assign($("cursor").style, { left: percent(cursor.x), top: percent(cursor.y), width: percent(1), height: percent(1) });
  $("cursor").hidden = !visible;
}

function addListeners() {
  const canvas = $("drawing");
  canvas.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    showCursor(false);
    stroke = { erase: erasing || event.button === 2 };
    strokeTo(...pixelAt(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (stroke && event.isPrimary) strokeTo(...pixelAt(event));
  });
  for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => (stroke = undefined));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("keydown", (event) => {
    if (!STEPS[event.key] && ![" ", "Backspace", "Delete"].includes(event.key)) return;
    event.preventDefault();
    handleKey(event.key);
    showCursor(true);
  });
  canvas.addEventListener("focus", () => showCursor(canvas.matches(":focus-visible")));
  canvas.addEventListener("blur", () => showCursor(false));
  $("eraser").addEventListener("click", () => $("eraser").setAttribute("aria-pressed", (erasing = !erasing)));
  $("clear").addEventListener("click", () => setPixels(new Uint8ClampedArray(pixels.length)));
  $("from-sample").addEventListener("click", () => page.sampleAt(nextSample++).then(setPixels, showError));
  $("strength").addEventListener("input", update);
}

function setPixels(values) {
  pixels = values;
  update();
}

// ---- render loop: renders the latest drawing and drops earlier ones ----

function update() {
  drawGrid($("drawing"), fromPixels(pixels), [1, page.card.channels, size, size]);
  const strength = Number($("strength").value);
  $("strength-value").textContent = strength.toFixed(2);
  pending = { pixels: pixels.slice(), strength };
  running ??= render().finally(() => (running = undefined));
}

async function render() {
  try {
    await encoderLoaded;
    while (pending) {
      await new Promise(requestAnimationFrame);
      const drawing = pending;
      pending = undefined;
      if (drawing.pixels.some(Boolean)) await classifyAndEdit(drawing);
      else showEmpty();
    }
  } catch (error) {
    showError(error);
  }
}

const showError = (error) => page.showError(`Failed to encode the drawing: ${error.message}`);

async function classifyAndEdit({ pixels, strength }) {
  const { card, request } = page;
  const labels = Array.from({ length: card.num_classes }, (_, label) => label);
  const noisy = fromPixels(pixels).map((value, i) => value + noise[i]);
  const encoded = await request({ encode: { images: repeat(noisy, labels.length), shape: [card.channels, size, size], labels } });
  if (!encoded.logProbs.every(Number.isFinite)) return showEmpty("The likelihood of this drawing is NaN or Inf.");
  const probabilities = softmax(encoded.logProbs);
  const ranked = [...labels].sort((a, b) => probabilities[b] - probabilities[a]);
  showClassification(ranked, probabilities);

  const length = card.noise_shape[0] * card.noise_shape[1];
  const z = encoded.noise.slice(ranked[0] * length, (ranked[0] + 1) * length);
  const targets = ranked.slice(0, MAX_EDITS).sort((a, b) => a - b);
  const all = [ranked[0], ...targets];
  const input = { noise: repeat(mixNoise(z, strength), all.length), shape: card.noise_shape, labels: all, guidance: new Float32Array(all.length) };
  const edits = await request({ sample: input });
  showEdits(all, edits);
  const times = [encoded, edits].map(({ milliseconds }) => milliseconds.toFixed(milliseconds < 10 ? 1 : 0));
  $("draw-time").textContent = `Encoded and classified in ${times[0]} ms, ${all.length} images decoded in ${times[1]} ms.`;
  $("drawing").dataset.rendered = JSON.stringify({ pixels: [...pixels], probabilities: [...probabilities], label: ranked[0], labels: all, strength });
}

/** Noise near z: sqrt(1 - s^2) z + s eps. */
function mixNoise(z, strength) {
  const [scale, fresh] = [Math.sqrt(1 - strength ** 2), page.imageNoise()];
  return z.map((value, i) => scale * value + strength * fresh[i]);
}

function repeat(values, times) {
  const repeated = new Float32Array(times * values.length);
  for (let i = 0; i < times; i++) repeated.set(values, i * values.length);
  return repeated;
}

function softmax(logits) {
  const max = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp(logit - max));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

// ---- output ----

function showHint(text) {
  $("hint").textContent = text;
  $("hint").hidden = !text;
  $("classification").hidden = $("edits").hidden = Boolean(text);
}

function showEmpty(hint = "Draw something to see its predicted class, its reconstruction and versions in other classes.") {
  showHint(hint);
  $("drawing").dataset.rendered = "{}";
}

const formatPercent = (probability) => `${(100 * probability).toFixed(1)}%`;
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

function showClassification(ranked, probabilities) {
  showHint("");
  const names = page.card.class_names;
  $("prediction").textContent = `Predicted class: ${names[ranked[0]]}`;
  const rows = ranked.slice(0, MAX_BARS).map((label) => {
    const percent = formatPercent(probabilities[label]);
    const bar = make("span", { className: "bar" }, make("span", {}));
    bar.firstChild.style.width = percent;
    return make("li", {}, make("span", { className: "name", textContent: names[label] }), bar, make("span", { className: "percent", textContent: percent }));
  });
  $("bars").replaceChildren(...rows);
}

function showEdits([predicted, ...targets], { values, dims }) {
  const [reconstruction, others, names] = [$("reconstruction"), $("reclassed"), page.card.class_names];
  while (others.children.length < targets.length) others.append(make("figure", {}, make("canvas", {}), make("figcaption", {})));
  const area = values.length / dims[0];
  [reconstruction, ...others.children].forEach(({ firstChild: canvas }, i) => {
    drawGrid(canvas, values.subarray(i * area, (i + 1) * area), [1, ...dims.slice(1)]);
  });
  targets.forEach((label, i) => {
    others.children[i].lastChild.textContent = names[label];
    others.children[i].classList.toggle("predicted", label === predicted);
  });
}
