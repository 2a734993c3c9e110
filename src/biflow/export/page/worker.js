// Runs the models beside the page, so that sliders stay smooth however long a pass takes; one question at a time.

const sessions = {}; // by the address of their file
let runtime;
let before = Promise.resolve(); // what was asked before

async function startRuntime() {
  const ort = await import("./ort/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1; // more need headers that plain web servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  return ort;
}

async function load(modelUrl) {
  const ort = await (runtime ??= startRuntime());
  const response = await fetch(modelUrl);
  if (!response.ok) throw new Error(`${modelUrl}: ${response.status} ${response.statusText}`);
  sessions[modelUrl] = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
}

/** Noise, labels and strengths of guidance -> images. */
async function sample({ noise, shape, labels, strengths }) {
  const ort = await runtime;
  const { found, milliseconds } = await run("model.onnx", {
    noise: new ort.Tensor("float32", noise, [labels.length, ...shape]),
    label: labelTensor(ort, labels),
    guidance: new ort.Tensor("float32", strengths, [labels.length]),
  });
  return { values: found.image.data, dims: found.image.dims, milliseconds };
}

/** Noisy images and labels -> their noise, and their log-densities in nats. */
async function encode({ images, shape, labels }) {
  const ort = await runtime;
  const { found, milliseconds } = await run("encoder.onnx", {
    image: new ort.Tensor("float32", images, [labels.length, ...shape]),
    label: labelTensor(ort, labels),
  });
  return { noise: found.noise.data, logProbs: found.log_prob.data, milliseconds };
}

const labelTensor = (ort, labels) => new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]);

async function run(modelUrl, feeds) {
  const start = performance.now();
  const found = await sessions[modelUrl].run(feeds);
  return { found, milliseconds: performance.now() - start };
}

const answers = { load, sample, encode };

async function answer({ id, ...question }) {
  try {
    const [[kind, what]] = Object.entries(question);
    self.postMessage({ id, result: await answers[kind](what) });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
}

self.onmessage = ({ data }) => (before = before.then(() => answer(data)));
