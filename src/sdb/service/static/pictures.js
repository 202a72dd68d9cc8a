// Pictures on canvases: pixels to look at, and a drawing to a file.

/** Draw pixels in [0, 1], in the order C, H, W of the shape, one canvas pixel each. */
export function show(canvas, pixels, [channels, height, width]) {
  canvas.width = width;
  canvas.height = height;
  const picture = new ImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    for (let channel = 0; channel < 3; channel++) {
      picture.data[4 * i + channel] = Math.round(255 * pixels[(channels === 1 ? 0 : channel) * size + i]);
    }
    picture.data[4 * i + 3] = 255;
  }
  contextOf(canvas).putImageData(picture, 0, 0);
}

/** What is on a canvas as a PNG file. */
export function fileOf(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function contextOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}
