// Images on canvases.

export const columnsFor = (imageSize) => (imageSize <= 32 ? 10 : imageSize <= 96 ? 6 : 4);

/** Draw images in [-1, 1], values of shape (count, channels, height, width), as a grid on a canvas. */
export function drawGrid(canvas, values, [count, channels, height, width]) {
  const columns = Math.min(count, columnsFor(width));
  const gap = Math.max(1, Math.round(width / 16));
  const [gridWidth, gridHeight] = [columns, Math.ceil(count / columns)].map((n) => n * (width + gap) - gap);
  if (canvas.width !== gridWidth || canvas.height !== gridHeight) Object.assign(canvas, { width: gridWidth, height: gridHeight });
  const picture = new ImageData(gridWidth, gridHeight);
  const area = height * width;
  for (let i = 0; i < count; i++) {
    const corner = Math.floor(i / columns) * (height + gap) * gridWidth + (i % columns) * (width + gap);
    for (let pixel = 0; pixel < area; pixel++) {
      const offset = 4 * (corner + Math.floor(pixel / width) * gridWidth + (pixel % width));
      for (let channel = 0; channel < 3; channel++) {
        const value = values[(i * channels + (channels === 1 ? 0 : channel)) * area + pixel];
        picture.data[offset + channel] = Math.round(value * 127.5 + 127.5); // clamped by the array
      }
      picture.data[offset + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** Values in [-1, 1] -> pixels, 0 to 255. */
export const toPixels = (values) => Uint8ClampedArray.from(values, (value) => value * 127.5 + 127.5);

/** Pixels, 0 to 255 -> values in [-1, 1]. */
export const fromPixels = (pixels) => Float32Array.from(pixels, (level) => level / 127.5 - 1);
