// The noise of `biflow sample`: SplitMix64 seeded with a BLAKE2b hash of the keys and with the image's index, then the
// Box-Muller transform in float32.  See biflow/data/randomness.py.

const u64 = (value) => BigInt.asUintN(64, value);
const rotateRight = (value, by) => u64((value >> by) | (value << (64n - by)));

// BLAKE2b (RFC 7693), unkeyed, for a string that fits into one block.

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
  v[d] = rotateRight(v[d] ^ v[a], 32n);
  v[c] = u64(v[c] + v[d]);
  v[b] = rotateRight(v[b] ^ v[c], 24n);
  v[a] = u64(v[a] + v[b] + y);
  v[d] = rotateRight(v[d] ^ v[a], 16n);
  v[c] = u64(v[c] + v[d]);
  v[b] = rotateRight(v[b] ^ v[c], 63n);
}

/** The hash of a short string, as bytes. */
function blake2b(text, size) {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length > BLOCK) throw new RangeError(`Expected at most ${BLOCK} bytes to hash; got ${bytes.length}.`);
  const view = new DataView(new ArrayBuffer(BLOCK));
  bytes.forEach((byte, i) => view.setUint8(i, byte));
  const words = Array.from({ length: 16 }, (_, i) => view.getBigUint64(8 * i, true));
  const start = [IV[0] ^ 0x01010000n ^ BigInt(size), ...IV.slice(1)];
  const v = [...start, ...IV];
  v[12] ^= BigInt(bytes.length);
  v[14] = u64(~v[14]); // the last block
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

/** The initial state of an image's stream; keys: Python's repr of the tuple of keys. */
function seedStream(keys, index) {
  return mix(u64(new DataView(blake2b(keys, 8).buffer).getBigUint64(0) + mix(BigInt(index))));
}

/** The first `count` 64-bit words of a stream, each as its low and its high 32 bits. */
function streamWords(start, count) {
  const words = new Uint32Array(2 * count);
  for (let i = 0; i < count; i++) {
    const word = mix(u64(start + BigInt(i + 1) * GOLDEN));
    words[2 * i] = Number(word & 0xffffffffn);
    words[2 * i + 1] = Number(word >> 32n);
  }
  return words;
}

const f32 = Math.fround;

/** Fill an array with standard normal numbers. */
function fillNormal(values, start) {
  const count = Math.ceil(values.length / 2);
  const words = streamWords(start, count);
  for (let i = 0; i < count; i++) {
    const uniform = f32(f32(f32(words[2 * i]) + f32(0.5)) * 2 ** -32);
    const radius = f32(Math.sqrt(f32(-2 * f32(Math.log(uniform)))));
    const angle = f32(f32(words[2 * i + 1] | 0) * f32(Math.PI * 2 ** -31));
    values[i] = radius * f32(Math.cos(angle));
    if (count + i < values.length) values[count + i] = radius * f32(Math.sin(angle));
  }
}

/** Fill an array with uniform numbers in [0, 1). */
function fillUniform(values, start) {
  streamWords(start, Math.ceil(values.length / 2)).forEach((word, i) => {
    if (i < values.length) values[i] = (word >>> 8) / 2 ** 24;
  });
}

/** The training noise for a drawing, `size` values, as in `add_noise` of biflow/data/augment.py. */
export function drawingNoise(size, { noise_std: std, bin_width: binWidth }) {
  const [normal, uniform] = [new Float32Array(size), new Float32Array(size)];
  fillNormal(normal, seedStream("('noise', 'draw', 0)", 0));
  fillUniform(uniform, seedStream("('dequantise', 'draw', 0)", 0));
  return normal.map((value, i) => std * value + binWidth * (uniform[i] - 0.5));
}

/** Standard normal noise for a seed and the images with indices 0 ... count - 1: count * size values. */
export function sampleNoise(seed, count, size) {
  const noise = new Float32Array(count * size);
  for (let i = 0; i < count; i++) {
    fillNormal(noise.subarray(i * size, (i + 1) * size), seedStream(`('sample', ${seed})`, i));
  }
  return noise;
}
