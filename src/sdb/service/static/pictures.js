// A picture to what the model takes, as the server's /predict does it: grey or colour, on white, stretched to the
// model's size with a triangle filter, in whole steps of 1/255.

const MAX_PIXELS = 2 ** 22; // of a picture; a larger one is made smaller by the browser first

/** Decode a picture file into a canvas, turned as its EXIF data say, on white. */
export async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("This is not a picture that this browser can read.");
  }
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = contextOf(canvas);
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

/** The pixels of a canvas for a model of shape [C, H, W]: Float32Array in [0, 1], in the order C, H, W. */
export function fit(canvas, [channels, height, width]) {
  const { data } = contextOf(canvas).getImageData(0, 0, canvas.width, canvas.height);
  const result = new Float32Array(channels * height * width);
  for (let channel = 0; channel < channels; channel++) {
    const plane = channels === 1 ? greyOf(data) : planeOf(data, channel);
    const rows = resize(plane, canvas.width, canvas.height, width);
    const fitted = resize(transpose(rows, width, canvas.height), canvas.height, width, height);
    result.set(transpose(fitted, height, width).map((value) => value / 255), channel * height * width);
  }
  return result;
}

/** Draw pixels as `fit` gives them, one canvas pixel each. */
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

export function contextOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

// The weights of ITU-R BT.601 in 65536ths, as Pillow has them.
function greyOf(data) {
  const plane = new Float32Array(data.length / 4);
  for (let i = 0; i < plane.length; i++) {
    plane[i] = (19595 * data[4 * i] + 38470 * data[4 * i + 1] + 7471 * data[4 * i + 2] + 32768) >> 16;
  }
  return plane;
}

function planeOf(data, channel) {
  return Float32Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + channel]);
}

/** Every row of a plane at a new width; each pixel is a weighted mean of those that it covers. */
function resize(plane, width, height, newWidth) {
  const scale = width / newWidth;
  const reach = Math.max(scale, 1);
  const result = new Float32Array(newWidth * height);
  for (let column = 0; column < newWidth; column++) {
    const centre = (column + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(width, Math.floor(centre + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(Math.max(0, 1 - Math.abs(x + 0.5 - centre) / reach));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let row = 0; row < height; row++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * plane[row * width + first + i];
      result[row * newWidth + column] = Math.round(sum / total);
    }
  }
  return result;
}

function transpose(plane, width, height) {
  const result = new Float32Array(plane.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) result[column * height + row] = plane[row * width + column];
  }
  return result;
}
