// The Open Inference Protocol v2, as much of it as the page needs. Addresses are relative: the server may be mounted
// below a path.

const HEADER = "Inference-Header-Content-Length";
const VIEWS = { FP32: Float32Array, INT64: BigInt64Array };

/** The server's model: name, classes, shape [C, H, W] of its images, answers policy for everybody, confidence levels. */
export async function describe() {
  const [{ name }] = await (await ask("v2/repository/index", { method: "POST" })).json();
  const found = await (await ask(`v2/models/${name}`)).json();
  const { class_names: classes, answers, box_id: box, confidence } = found.parameters;
  return { name, classes, answers, box, levels: confidence.levels ?? [], shape: found.inputs[0].shape.slice(1) };
}

/**
 * What the model is asked about a picture file: the server decodes and fits it, as for /predict, so that it is the
 * picture that the model was trained to see, whatever the browser.
 *
 * @param {Blob} file the encoded picture.
 * @returns {Promise<{pixels: Float32Array, changes: string[]}>} pixels in [0, 1], in the order channel, row, column.
 */
export async function fit(file) {
  const headers = { "Content-Type": "application/octet-stream" };
  const { pixels, changes } = await (await ask("pixels", { method: "POST", headers, body: file })).json();
  return { pixels: Float32Array.from(atob(pixels), (byte) => byte.charCodeAt(0) / 255), changes };
}

/**
 * Ask about one image.
 *
 * @param {{name: string, shape: number[]}} model what `describe` found.
 * @param {Float32Array} pixels in [0, 1], in the order channel, row, column.
 * @param {string} token "" for none.
 * @returns {Promise<Object<string, number[]>>} the output tensors by name.
 */
export async function infer({ name, shape }, pixels, token) {
  const input = {
    name: "image",
    shape: [1, ...shape],
    datatype: "FP32",
    parameters: { binary_data_size: pixels.byteLength },
  };
  const json = new TextEncoder().encode(
    JSON.stringify({ inputs: [input], parameters: { binary_data_output: true } }),
  );
  const headers = { [HEADER]: String(json.length), "Content-Type": "application/octet-stream" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const body = new Blob([json, littleEndian(pixels)]);
  const response = await ask(`v2/models/${name}/infer`, { method: "POST", headers, body });
  const data = await response.arrayBuffer();
  const size = Number(response.headers.get(HEADER));
  const { outputs } = JSON.parse(new TextDecoder().decode(data.slice(0, size)));
  let at = size;
  const tensors = {};
  for (const output of outputs) {
    const end = at + output.parameters.binary_data_size;
    tensors[output.name] = Array.from(new VIEWS[output.datatype](data.slice(at, end)), Number);
    at = end;
  }
  return tensors;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const when = wait ? ` Try again in ${wait} s.` : "";
  throw new Error(`The server refused (${response.status}): ${error ?? "no reason given"}.${when}`);
}

/** The bytes of numbers in the protocol's order, which is that of nearly every machine. */
function littleEndian(pixels) {
  const view = new DataView(new ArrayBuffer(pixels.byteLength));
  pixels.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return view.buffer;
}
