// The noise that `biflow sample` draws: SplitMix64, started by the BLAKE2b hash of what the noise is for and by the place
// of the image, and Box and Muller's pairs of normal numbers, in float32.  See biflow/data/randomness.py.

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

function mixQuarter(v, [a, b, c, d], x, y) {
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
function blake2b(text, size) {
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
    QUARTERS.forEach((quarter, i) => mixQuarter(v, quarter, words[order[2 * i]], words[order[2 * i + 1]]));
  }
  start.forEach((word, i) => view.setBigUint64(8 * i, word ^ v[i] ^ v[i + 8], true));
  return new Uint8Array(view.buffer, 0, size);
}

// SplitMix64 (Steele, Lea and Flood, 2014).

const GOLDEN = 0x9e3779b97f4a7c15n;

function mix(z) {
  z = u64((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = u64((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

/** Where the stream of numbers of an image begins, for the text of what they are for. */
function startOf(keys, index) {
  return mix(u64(new DataView(blake2b(keys, 8).buffer).getBigUint64(0) + mix(BigInt(index))));
}

/** The first `count` words of a stream, each as its low and its high 32 bits. */
function halves(start, count) {
  const found = new Uint32Array(2 * count);
  for (let i = 0; i < count; i++) {
    const word = mix(u64(start + BigInt(i + 1) * GOLDEN));
    found[2 * i] = Number(word & 0xffffffffn);
    found[2 * i + 1] = Number(word >> 32n);
  }
  return found;
}

const f32 = Math.fround;

/** Fill an array with standard normal numbers. */
function fillNormal(values, start) {
  const count = Math.ceil(values.length / 2);
  const words = halves(start, count);
  for (let i = 0; i < count; i++) {
    const share = f32(f32(f32(words[2 * i]) + f32(0.5)) * 2 ** -32);
    const radius = f32(Math.sqrt(f32(-2 * f32(Math.log(share)))));
    const angle = f32(f32(words[2 * i + 1] | 0) * f32(Math.PI * 2 ** -31));
    values[i] = radius * f32(Math.cos(angle));
    if (count + i < values.length) values[count + i] = radius * f32(Math.sin(angle));
  }
}

/** Fill an array with numbers in [0, 1). */
function fillUniform(values, start) {
  halves(start, Math.ceil(values.length / 2)).forEach((half, i) => {
    if (i < values.length) values[i] = (half >>> 8) / 2 ** 24;
  });
}

/** A drawing's noise, as `add_noise` of biflow/data/perturb.py draws it: `size` numbers in an image's units. */
export function noiseOfDrawing(size, { noise_std: std, bin_width: binWidth }) {
  const [normal, uniform] = [new Float32Array(size), new Float32Array(size)];
  fillNormal(normal, startOf("('noise', 'draw', 0)", 0));
  fillUniform(uniform, startOf("('dequantise', 'draw', 0)", 0));
  return normal.map((value, i) => std * value + binWidth * (uniform[i] - 0.5));
}

/** The noise of the images at places 0 ... count - 1 for a seed: count * size numbers, standard normal. */
export function noiseFor(seed, count, size) {
  const noise = new Float32Array(count * size);
  for (let place = 0; place < count; place++) {
    fillNormal(noise.subarray(place * size, (place + 1) * size), startOf(`('sample', ${seed})`, place));
  }
  return noise;
}
