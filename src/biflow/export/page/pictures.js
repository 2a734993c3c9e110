// Images on canvases.

export const columnsOf = (size) => (size <= 32 ? 10 : size <= 96 ? 6 : 4);

/** Draw images in [-1, 1], values of shape (count, channels, height, width), side by side on a canvas. */
export function drawGrid(canvas, values, [count, channels, height, width]) {
  const columns = Math.min(count, columnsOf(width));
  const gap = Math.max(1, Math.round(width / 16));
  const [gridWidth, gridHeight] = [columns, Math.ceil(count / columns)].map((n) => n * (width + gap) - gap);
  if (canvas.width !== gridWidth || canvas.height !== gridHeight) Object.assign(canvas, { width: gridWidth, height: gridHeight });
  const picture = new ImageData(gridWidth, gridHeight);
  const area = height * width;
  for (let i = 0; i < count; i++) {
    const corner = Math.floor(i / columns) * (height + gap) * gridWidth + (i % columns) * (width + gap);
    for (let pixel = 0; pixel < area; pixel++) {
      const place = 4 * (corner + Math.floor(pixel / width) * gridWidth + (pixel % width));
      for (let channel = 0; channel < 3; channel++) {
        const value = values[(i * channels + (channels === 1 ? 0 : channel)) * area + pixel];
        picture.data[place + channel] = Math.round(value * 127.5 + 127.5); // clamped by the array
      }
      picture.data[place + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** Grey levels, as images in [-1, 1] have them. */
export const toLevels = (values) => Uint8ClampedArray.from(values, (value) => value * 127.5 + 127.5);

/** Grey levels to values in [-1, 1]. */
export const fromLevels = (levels) => Float32Array.from(levels, (level) => level / 127.5 - 1);
