// Key files, read in the browser. The secret stays in this module, and only until what follows from it is computed:
// what it hands out is the key's id and its pattern, as sdb/keys.py makes them.

import { shake256 } from "./shake.js";

const VERSION = 1;
const MAX_FILE = 2 ** 16; // bytes; a key file has less than one thousand

/**
 * Read a key file.
 *
 * @param {Blob} file what the user chose.
 * @param {number[]} shape [C, H, W] of the model's images.
 * @returns {Promise<{id: string, kind: string, scope: string, blend: number, pattern: Uint8Array | null}>}
 *   pattern: of an image key, C * H * W bytes; null for a weight key.
 * @throws {Error} with a message for people.
 */
export async function readKey(file, shape) {
  if (!globalThis.crypto?.subtle) {
    throw new Error("Keys are only read over HTTPS or on this machine: over plain HTTP this page could be forged.");
  }
  const body = parse(file.size > MAX_FILE ? "" : await file.text());
  if (body.sdb_key !== VERSION) throw new Error(`This page reads key files of version ${VERSION} only.`);
  if (body.kind === "owner") {
    throw new Error("This is an owner's secret, not a partner's key. Keep it away from web pages.");
  }
  if ("ciphertext" in body) {
    throw new Error("This key file is encrypted, which this page cannot read. It takes key files without a passphrase.");
  }
  const { kind, scope } = body;
  const blend = kind === "weight" ? 1 : body.blend;
  const isSound =
    (kind === "image" || kind === "weight") &&
    typeof scope === "string" &&
    typeof blend === "number" &&
    blend > 0 &&
    blend <= 1 &&
    /^[0-9a-f]{64}$/i.test(body.secret);
  if (!isSound) throw damaged();
  const secret = bytesOf(body.secret);
  const id = hexOf(await derive(secret, `id/${kind}/${pythonFloat(blend)}/${scope}`, 16));
  if (id !== body.id) throw new Error("The key file was altered: its secret and its header do not belong together.");
  const pattern = kind === "image" ? await patternOf(secret, shape) : null;
  secret.fill(0);
  return { id, kind, scope, blend, pattern };
}

/** A keyed image: blend * image + (1 - blend) * pattern, Float32Array with values in [0, 1]. */
export function embed(pixels, { blend, pattern }) {
  return pixels.map((value, i) => blend * value + ((1 - blend) * pattern[i]) / 255);
}

function parse(text) {
  try {
    const body = JSON.parse(text);
    if (body !== null && typeof body === "object" && "sdb_key" in body) return body;
  } catch {
    // said below
  }
  throw damaged();
}

function damaged() {
  return new Error("This is not an sdb key file, or it is damaged.");
}

async function patternOf(secret, [channels, height, width]) {
  const seed = await derive(secret, `pattern/${channels}x${height}x${width}`, 32);
  return shake256(seed, channels * height * width);
}

async function derive(secret, label, length) {
  const key = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  const info = new TextEncoder().encode(`sdb/1/${label}`);
  const how = { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(0), info };
  return new Uint8Array(await crypto.subtle.deriveBits(how, key, 8 * length));
}

/** A number in (0, 1] as Python writes it, which the key's id depends on. */
export function pythonFloat(value) {
  if (value === 1) return "1.0";
  if (value >= 1e-4) return String(value);
  return value.toExponential().replace(/e-(\d)$/, "e-0$1");
}

function bytesOf(hex) {
  return Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
}

function hexOf(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
