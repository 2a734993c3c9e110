// Runs the models in a web worker, so that the page stays responsive; requests are handled one at a time.

const sessions = {}; // by model URL
let runtime;
let previous = Promise.resolve();

async function startRuntime() {
  const ort = await import("./ort/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1; // more threads need cross-origin isolation headers, which plain web servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  return ort;
}

async function load(modelUrl) {
  const ort = await (runtime ??= startRuntime());
  const response = await fetch(modelUrl);
  if (!response.ok) throw new Error(`${modelUrl}: ${response.status} ${response.statusText}`);
  sessions[modelUrl] = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
}

/** Noise, labels and guidance strengths -> images. */
async function sample({ noise, shape, labels, guidance }) {
  const ort = await runtime;
  const { outputs, milliseconds } = await run("model.onnx", {
    noise: new ort.Tensor("float32", noise, [labels.length, ...shape]),
    label: labelTensor(ort, labels),
    guidance: new ort.Tensor("float32", guidance, [labels.length]),
  });
  return { values: outputs.image.data, dims: outputs.image.dims, milliseconds };
}

/** Noisy images and labels -> noise and log-densities in nats. */
async function encode({ images, shape, labels }) {
  const ort = await runtime;
  const { outputs, milliseconds } = await run("encoder.onnx", {
    image: new ort.Tensor("float32", images, [labels.length, ...shape]),
    label: labelTensor(ort, labels),
  });
  return { noise: outputs.noise.data, logProbs: outputs.log_prob.data, milliseconds };
}

const labelTensor = (ort, labels) => new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]);

async function run(modelUrl, feeds) {
  const start = performance.now();
  const outputs = await sessions[modelUrl].run(feeds);
  return { outputs, milliseconds: performance.now() - start };
}

const handlers = { load, sample, encode };

async function handle({ id, ...request }) {
  try {
    const [[name, argument]] = Object.entries(request);
    self.postMessage({ id, result: await handlers[name](argument) });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
}

self.onmessage = ({ data }) => (previous = previous.then(() => handle(data)));
