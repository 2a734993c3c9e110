// A drawing: which class it is of, by the flow's likelihood, and what becomes of it by way of its noise.

import { noiseOfDrawing } from "./noise.js";
import { drawGrid, fromLevels } from "./pictures.js";

const MOST_BARS = 5;
const MOST_EDITS = 16; // classes that the drawing is shown as; of more, the most likely ones
const MOST_LETTERS = 4; // of names that stand below small images
const SOFT = 0.4; // of a pixel's light, for those beside it in grey images
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);
const cursor = { x: 0, y: 0 };
let page, size, pixels, noise, ready; // pixels: grey levels (channels, size, size)
let stroke, erasing, wanted, running;
let samples = 0; // that were taken

/** Start with what the page gives: card, ask, sampleAt, freshNoise and complain.  Gives a function that shows all anew. */
export function startDrawing(given) {
  page = given;
  const { card } = page;
  size = card.image_size;
  pixels = new Uint8ClampedArray(card.channels * size * size);
  noise = noiseOfDrawing(pixels.length, card.drawing);
  Object.assign($("drawing"), { width: size, height: size });
  $("drawing").setAttribute("aria-label", `Drawing of ${size} by ${size} pixels`);
  $("colour-field").hidden = card.channels === 1;
  $("edits").classList.toggle("wordy", card.class_names.some((name) => name.length > MOST_LETTERS));
  cursor.x = cursor.y = Math.floor(size / 2);
  listen();
  hint("Loading the encoder, once…");
  ready = page.ask({ load: "encoder.onnx" });
  return refresh;
}

// ---- painting ----

function brush(x, y, erase) {
  const reach = Math.floor(size / 32);
  const soft = page.card.channels === 1;
  for (let dy = -reach - 1; dy <= reach + 1; dy++) {
    for (let dx = -reach - 1; dx <= reach + 1; dx++) {
      const far = Math.hypot(dx, dy);
      if (far <= reach) paint(x + dx, y + dy, erase, 1);
      else if (soft && !erase && far <= reach + 1) paint(x + dx, y + dy, erase, SOFT);
    }
  }
}

function paint(x, y, erase, strength) {
  if (x < 0 || y < 0 || x >= size || y >= size) return;
  const { channels } = page.card;
  colour().slice(0, channels).forEach((level, channel) => {
    const place = (channel * size + y) * size + x;
    if (erase) pixels[place] = 0;
    else pixels[place] = channels === 1 ? Math.max(pixels[place], level * strength) : level;
  });
}

/** Red, green and blue, from 0 to 255. */
const colour = () => (page.card.channels === 1 ? [255] : [1, 3, 5].map((start) => parseInt($("colour").value.slice(start, start + 2), 16)));

function brushTo(x, y) {
  const from = stroke.last ?? { x, y };
  const steps = Math.max(1, Math.abs(x - from.x), Math.abs(y - from.y));
  for (let step = 0; step <= steps; step++) {
    brush(Math.round(from.x + ((x - from.x) * step) / steps), Math.round(from.y + ((y - from.y) * step) / steps), stroke.erase);
  }
  stroke.last = { x, y };
  refresh();
}

function cellAt({ clientX, clientY }) {
  const box = $("drawing").getBoundingClientRect();
  return [(clientX - box.left) / box.width, (clientY - box.top) / box.height].map((share) => Math.floor(share * size));
}

function press(key) {
  if (STEPS[key]) {
    cursor.x = Math.min(size - 1, Math.max(0, cursor.x + STEPS[key][0]));
    cursor.y = Math.min(size - 1, Math.max(0, cursor.y + STEPS[key][1]));
  } else {
    brush(cursor.x, cursor.y, key !== " " || erasing);
    refresh();
  }
}

function showCursor(visible) {
  const place = (cell) => `${(100 * cell) / size}%`;
  Object.assign($("cursor").style, { left: place(cursor.x), top: place(cursor.y), width: place(1), height: place(1) });
  $("cursor").hidden = !visible;
}

function listen() {
  const canvas = $("drawing");
  canvas.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    showCursor(false);
    stroke = { erase: erasing || event.button === 2 };
    brushTo(...cellAt(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (stroke && event.isPrimary) brushTo(...cellAt(event));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (stroke = undefined));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("keydown", (event) => {
    if (!STEPS[event.key] && ![" ", "Backspace", "Delete"].includes(event.key)) return;
    event.preventDefault();
    press(event.key);
    showCursor(true);
  });
  canvas.addEventListener("focus", () => showCursor(canvas.matches(":focus-visible")));
  canvas.addEventListener("blur", () => showCursor(false));
  $("eraser").addEventListener("click", () => $("eraser").setAttribute("aria-pressed", (erasing = !erasing)));
  $("clear").addEventListener("click", () => replace(new Uint8ClampedArray(pixels.length)));
  $("from-sample").addEventListener("click", () => page.sampleAt(samples++).then(replace, fail));
  $("vary").addEventListener("input", refresh);
}

function replace(levels) {
  pixels = levels;
  refresh();
}

// ---- the loop: the latest drawing is served, those before it are dropped ----

function refresh() {
  drawGrid($("drawing"), fromLevels(pixels), [1, page.card.channels, size, size]);
  const strength = Number($("vary").value);
  $("vary-value").textContent = strength.toFixed(2);
  wanted = { pixels: pixels.slice(), strength };
  running ??= serve().finally(() => (running = undefined));
}

async function serve() {
  try {
    await ready;
    while (wanted) {
      await new Promise(requestAnimationFrame);
      const now = wanted;
      wanted = undefined;
      if (now.pixels.some(Boolean)) await follow(now);
      else showNothing();
    }
  } catch (error) {
    fail(error);
  }
}

const fail = (error) => page.complain(`The drawing could not be encoded: ${error.message}`);

async function follow({ pixels, strength }) {
  const { card, ask } = page;
  const labels = Array.from({ length: card.num_classes }, (_, label) => label);
  const noisy = fromLevels(pixels).map((value, place) => value + noise[place]);
  const encoded = await ask({ encode: { images: repeated(noisy, labels.length), shape: [card.channels, size, size], labels } });
  if (!encoded.logProbs.every(Number.isFinite)) return showNothing("This drawing has no finite likelihood.");
  const shares = softmax(encoded.logProbs);
  const ranked = [...labels].sort((a, b) => shares[b] - shares[a]);
  showClasses(ranked, shares);

  const length = noiseLength();
  const found = encoded.noise.slice(ranked[0] * length, (ranked[0] + 1) * length);
  const targets = ranked.slice(0, MOST_EDITS).sort((a, b) => a - b);
  const all = [ranked[0], ...targets];
  const question = { noise: repeated(mixed(found, strength), all.length), shape: card.noise_shape, labels: all, strengths: new Float32Array(all.length) };
  const edits = await ask({ sample: question });
  showEdits(all, edits);
  const times = [encoded, edits].map(({ milliseconds }) => milliseconds.toFixed(milliseconds < 10 ? 1 : 0));
  $("draw-time").textContent = `Encoded and classified in ${times[0]} ms, ${all.length} images decoded in ${times[1]} ms.`;
  $("drawing").dataset.shown = JSON.stringify({ pixels: [...pixels], shares: [...shares], label: ranked[0], labels: all, strength });
}

const noiseLength = () => page.card.noise_shape[0] * page.card.noise_shape[1];

/** Noise near some: sqrt(1 - s^2) z + s eps. */
function mixed(found, strength) {
  const [kept, fresh] = [Math.sqrt(1 - strength ** 2), page.freshNoise()];
  return found.map((value, place) => kept * value + strength * fresh[place]);
}

function repeated(values, times) {
  const all = new Float32Array(times * values.length);
  for (let i = 0; i < times; i++) all.set(values, i * values.length);
  return all;
}

function softmax(logits) {
  const most = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp(logit - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

// ---- showing ----

function hint(text) {
  $("hint").textContent = text;
  $("hint").hidden = !text;
  $("classified").hidden = $("edited").hidden = Boolean(text);
}

function showNothing(why = "Draw something: the flow says which class it is, and shows it as every other.") {
  hint(why);
  $("drawing").dataset.shown = "{}";
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

function showClasses(ranked, shares) {
  hint("");
  const names = page.card.class_names;
  $("verdict").textContent = `Most likely: ${names[ranked[0]]}`;
  const bars = ranked.slice(0, MOST_BARS).map((label) => {
    const bar = make("span", { className: "bar" }, make("span", {}));
    bar.firstChild.style.width = percent(shares[label]).replace(" ", "");
    return make("li", {}, make("span", { className: "name", textContent: names[label] }), bar, make("span", { className: "share", textContent: percent(shares[label]) }));
  });
  $("bars").replaceChildren(...bars);
}

function showEdits([found, ...targets], { values, dims }) {
  const [again, others, names] = [$("again"), $("as-classes"), page.card.class_names];
  while (others.children.length < targets.length) others.append(make("figure", {}, make("canvas", {}), make("figcaption", {})));
  const area = values.length / dims[0];
  [again, ...others.children].forEach(({ firstChild: canvas }, i) => {
    drawGrid(canvas, values.subarray(i * area, (i + 1) * area), [1, ...dims.slice(1)]);
  });
  targets.forEach((label, i) => {
    others.children[i].lastChild.textContent = names[label];
    others.children[i].classList.toggle("own", label === found);
  });
}
