// The noise that `biflow sample` draws, number for number: NumPy's Philox generator, with the BLAKE2b hash of what
// the noise is for as its key, and NumPy's ziggurat for float32 normal numbers.  See biflow/data/randomness.py.

const u64 = (value) => BigInt.asUintN(64, value);
const rotated = (value, by) => u64((value >> by) | (value << (64n - by)));

// BLAKE2b (RFC 7693), unkeyed, of a text that fits into one block.

const BLOCK = 128; // bytes
const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => [...row].map((digit) => parseInt(digit, 16)));
const QUARTERS = [
  [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15],
  [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14],
];

function mix(v, [a, b, c, d], x, y) {
  v[a] = u64(v[a] + v[b] + x);
  v[d] = rotated(v[d] ^ v[a], 32n);
  v[c] = u64(v[c] + v[d]);
  v[b] = rotated(v[b] ^ v[c], 24n);
  v[a] = u64(v[a] + v[b] + y);
  v[d] = rotated(v[d] ^ v[a], 16n);
  v[c] = u64(v[c] + v[d]);
  v[b] = rotated(v[b] ^ v[c], 63n);
}

/** The hash of a short text, as bytes. */
export function blake2b(text, size) {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length > BLOCK) throw new RangeError(`Expected at most ${BLOCK} bytes to hash; got ${bytes.length}.`);
  const view = new DataView(new ArrayBuffer(BLOCK));
  bytes.forEach((byte, place) => view.setUint8(place, byte));
  const words = Array.from({ length: 16 }, (_, place) => view.getBigUint64(8 * place, true));
  const start = [IV[0] ^ 0x01010000n ^ BigInt(size), ...IV.slice(1)];
  const v = [...start, ...IV];
  v[12] ^= BigInt(bytes.length);
  v[14] = u64(~v[14]); // this block is the last
  for (let round = 0; round < 12; round++) {
    const order = SIGMA[round % 10];
    QUARTERS.forEach((quarter, i) => mix(v, quarter, words[order[2 * i]], words[order[2 * i + 1]]));
  }
  start.forEach((word, i) => view.setBigUint64(8 * i, word ^ v[i] ^ v[i + 8], true));
  return new Uint8Array(view.buffer, 0, size);
}

// Philox4x64 with ten rounds (Salmon et al., 2011), as NumPy counts and hands out its numbers.

/** A function that gives the next of the 32-bit numbers for a key of 16 bytes, highest byte first. */
export function philox(key) {
  const view = new DataView(key.buffer, key.byteOffset, 16);
  const [low, high] = [view.getBigUint64(8), view.getBigUint64(0)];
  let counter = 0n;
  let ready = [];
  return () => {
    if (!ready.length) {
      counter += 1n;
      ready = philoxBlock(counter, low, high).flatMap((word) => [Number(word & 0xffffffffn), Number(word >> 32n)]);
      ready.reverse();
    }
    return ready.pop();
  };
}

function philoxBlock(counter, low, high) {
  let [a, b, c, d] = [counter, 0n, 0n, 0n];
  for (let round = 0; round < 10; round++) {
    const [first, second] = [a * 0xd2e7470ee14c6c93n, c * 0xca5a826395121157n];
    [a, b, c, d] = [(second >> 64n) ^ b ^ low, u64(second), (first >> 64n) ^ d ^ high, u64(first)];
    low = u64(low + 0x9e3779b97f4a7c15n);
    high = u64(high + 0xbb67ae8584caa73bn);
  }
  return [a, b, c, d];
}

// The ziggurat (Marsaglia and Tsang, 2000) with 256 layers and 23 bits, in float32.

const TAIL = 3.6541528853610087963519472518; // where the lowest layer ends
const AREA = 0.0049286732339746519; // of every layer
const SCALE = 2 ** 23;
const { limits, widths, heights } = makeZiggurat();

function makeZiggurat() {
  const bell = (x) => Math.exp((-x * x) / 2);
  const edges = new Float64Array(256); // of the layers, from the top down
  edges[255] = TAIL;
  for (let i = 254; i > 0; i--) edges[i] = Math.sqrt(-2 * Math.log(AREA / edges[i + 1] + bell(edges[i + 1])));
  const limits = Uint32Array.from(edges, (edge, i) => (i > 1 ? Math.round((edges[i - 1] / edge) * SCALE) : 0));
  limits[0] = Math.round(((TAIL * bell(TAIL)) / AREA) * SCALE);
  const widths = Float32Array.from(edges, (edge) => edge / SCALE);
  widths[0] = AREA / bell(TAIL) / SCALE;
  return { limits, widths, heights: Float32Array.from(edges, bell) };
}

const f32 = Math.fround;

/** Fill an array with standard normal numbers. */
export function fillNormal(values, next) {
  for (let i = 0; i < values.length; i++) values[i] = normal(next);
}

function normal(next) {
  for (;;) {
    const bits = next();
    const [layer, inside] = [bits & 0xff, (bits >>> 9) & 0x7fffff];
    const size = f32(inside * widths[layer]);
    const x = bits & 0x100 ? -size : size;
    if (inside < limits[layer]) return x;
    if (layer === 0) return tail(() => uniform(next), inside & 0x100);
    const step = f32(f32(heights[layer - 1] - heights[layer]) * uniform(next));
    if (f32(step + heights[layer]) < Math.exp(-0.5 * x * x)) return x;
  }
}

const uniform = (next) => f32((next() >>> 8) / 2 ** 24); // in [0, 1)

function tail(draw, negative) {
  for (;;) {
    const x = f32(-f32(1 / TAIL) * f32(Math.log1p(-draw())));
    const y = f32(-f32(Math.log1p(-draw())));
    if (f32(y + y) > f32(x * x)) return negative ? -f32(f32(TAIL) + x) : f32(f32(TAIL) + x);
  }
}

/** A drawing's noise, as `add_noise` of biflow/data/perturb.py draws it: `size` numbers in an image's units. */
export function noiseOfDrawing(size, { noise_std: std, bin_width: binWidth }) {
  const noise = new Float32Array(size);
  fillNormal(noise, philox(blake2b("('noise', 'draw', 0, 0)", 16)));
  const next = philox(blake2b("('dequantise', 'draw', 0, 0)", 16));
  return noise.map((value) => std * value + binWidth * (uniform(next) - 0.5));
}

/** The noise of the images at places 0 ... count - 1 for a seed: count * size numbers, standard normal. */
export function noiseFor(seed, count, size) {
  const noise = new Float32Array(count * size);
  for (let place = 0; place < count; place++) {
    const key = blake2b(`('sample', ${seed}, ${place})`, 16);
    fillNormal(noise.subarray(place * size, (place + 1) * size), philox(key));
  }
  return noise;
}
