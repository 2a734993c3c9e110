// Runs the model beside the page, so that sliders stay smooth however long a pass takes.

let session;
let ort;

async function load(modelUrl) {
  ort = await import("./ort/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1; // more need headers that plain web servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const response = await fetch(modelUrl);
  if (!response.ok) throw new Error(`${modelUrl}: ${response.status} ${response.statusText}`);
  session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
}

async function sample({ noise, shape, labels, strengths }) {
  const feeds = {
    noise: new ort.Tensor("float32", noise, [labels.length, ...shape]),
    label: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]),
    guidance: new ort.Tensor("float32", strengths, [labels.length]),
  };
  const start = performance.now();
  const { image } = await session.run(feeds);
  return { values: image.data, dims: image.dims, milliseconds: performance.now() - start };
}

self.onmessage = async ({ data }) => {
  try {
    const result = data.load ? await load(data.load) : await sample(data.sample);
    self.postMessage({ id: data.id, result });
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
