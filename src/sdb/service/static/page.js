// The page: what the user does, what is asked, what is shown.

import { chances, divergence, readAnswer, spreadInWords } from "./answers.js";
import { drawBars, percent } from "./chart.js";
import { levelsInWords } from "./levels.js";
import { embed, readKey } from "./keys.js";
import { makePad } from "./pad.js";
import { fileOf, show } from "./pictures.js";
import { describe, fit, infer } from "./protocol.js";

const at = (id) => document.getElementById(id);
const POLICIES = {
  logits: "logits",
  probabilities: "probabilities",
  top_k: "the best classes only",
  labels: "labels only",
};
const TEMPERATURE = at("temperature-help").textContent;
const FIXED = "Too little is given away to show the answer at another temperature.";
const SAMPLES = [0, 2, 3, 4, 6, 7]; // digits from the test images of the embedded data
const OPENING = 3; // the one that is asked about first

let model = null;
let picture = null; // pixels of the last picture, as the server fits it
let name = ""; // what it is, for people
let chosen = 0; // number of the last picture, so that one that is fitted late does not replace it
let key = null;
let token = "";
let answers = { keyless: null, keyed: null };
let question = 0; // number of the last one, so that late answers to earlier ones are dropped

async function start() {
  try {
    model = await describe();
  } catch (error) {
    at("model").textContent = error.message;
    at("model").className = "error";
    return;
  }
  const [channels, height, width] = model.shape;
  const colour = { 1: "grey", 3: "colour" }[channels];
  const size = `${width} × ${height} pixels, ${colour ?? `${channels} channels`}`;
  at("model").textContent = `Model ${model.name}: ${size}, ${model.classes.length} classes`;
  at("policy").textContent = `Given away to everybody: ${POLICIES[model.answers]}.`;
  if (!colour) {
    at("model").append(". Pictures have 1 or 3 channels, so it cannot be asked from here.");
    return;
  }
  document.title = `${model.name}: Safe Distillation Box`;
  at("main").hidden = false;
  const colours = channels === 1 ? { paper: "black", ink: "white" } : { paper: "white", ink: "black" };
  const wipe = makePad(at("pad"), at("pen"), colours, takeDrawing);
  at("wipe").addEventListener("click", wipe);
  at("levels").textContent = levelsInWords(model.levels);
  at("levels").hidden = !model.levels.length;
  offerSamples();
  listen();
  draw();
}

/** Samples fit the digits only, and the page opens on one; any other model is tried by drawing. */
function offerSamples() {
  const isDigits = String(model.shape) === "1,8,8" && String(model.classes) === "0,1,2,3,4,5,6,7,8,9";
  if (!isDigits) return;
  at("samples").hidden = false;
  for (const digit of SAMPLES) {
    const button = document.createElement("button");
    const image = document.createElement("img");
    image.src = `digit-${digit}.png`;
    image.alt = `Handwritten ${digit}`;
    button.type = "button";
    button.append(image);
    button.addEventListener("click", () => takeSample(image.src));
    at("samples").lastElementChild.append(button);
  }
  takeSample(`digit-${OPENING}.png`);
}

function takeSample(source) {
  attempt(async () => takeFile(await (await fetch(source)).blob(), "a sample"));
}

function listen() {
  at("file").addEventListener("change", () => {
    const [file] = at("file").files;
    at("file").value = ""; // so that the same file can be chosen again
    if (file) attempt(() => takeFile(file, file.name));
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) attempt(() => (file.type.startsWith("image/") ? takeFile(file, file.name) : takeKey(file)));
  });
  at("invert").addEventListener("change", askAgain);
  at("temperature").addEventListener("input", draw);
  at("key-file").addEventListener("change", () => {
    const [file] = at("key-file").files;
    at("key-file").value = "";
    if (file) attempt(() => takeKey(file));
  });
  at("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    at("forget").hidden = !key && !token;
    askAgain();
  });
  at("forget").addEventListener("click", () => {
    key = null;
    token = at("token").value = "";
    at("key-status").textContent = "Forgotten.";
    at("forget").hidden = true;
    at("key-file").focus();
    askAgain();
  });
}

async function takeFile(file, what) {
  if (!file.type.startsWith("image/")) throw new Error("This is not a picture."); // a key file is not sent
  const mine = ++chosen;
  const { pixels, changes } = await fit(file);
  if (mine !== chosen) return;
  picture = pixels;
  name = what;
  at("changes").textContent = changes.length ? `To fit the model it was ${changes.join("; ")}.` : "";
  askAgain();
}

function takeDrawing() {
  attempt(async () => takeFile(await fileOf(at("pad")), "your drawing"));
}

async function takeKey(file) {
  key = null;
  at("key-status").className = "status";
  try {
    const read = await readKey(file, model.shape);
    const whose = `key ${read.id.slice(0, 8)}${read.scope ? ` of ${read.scope}` : ""}`;
    if (read.pattern) {
      key = read;
      at("key-status").textContent = `Image ${whose}: pictures are keyed here.`;
    } else {
      at("key-status").textContent = `Weight ${whose}: the server uses it, not this page. Enter your token below.`;
    }
  } catch (error) {
    at("key-status").textContent = error.message;
    at("key-status").classList.add("error");
  }
  at("forget").hidden = !key && !token;
  askAgain();
}

/** Ask about the current picture, as a thief and, with a key or a token, as a partner. */
function askAgain() {
  if (picture) attempt(ask);
  else draw();
}

async function ask() {
  const mine = ++question;
  const pixels = at("invert").checked ? picture.map((value) => 1 - value) : picture;
  const keyed = key && embed(pixels, key);
  const asked = [infer(model, pixels, "")];
  if (keyed || token) asked.push(infer(model, keyed ?? pixels, token));
  showSent("keyless", pixels, `${name}, as sent without a key`);
  showSent("keyed", asked[1] && (keyed ?? pixels), `${name}, as sent with the key`);
  at("bars").ariaBusy = "true";
  const [keyless, partner] = await Promise.allSettled(asked);
  if (mine !== question) return;
  at("bars").ariaBusy = "false";
  const read = (result) => (result?.status === "fulfilled" ? readAnswer(result.value) : null);
  answers = { keyless: read(keyless), keyed: read(partner) };
  draw();
  for (const result of [keyless, partner]) if (result?.status === "rejected") throw result.reason;
}

function showSent(who, pixels, label) {
  const canvas = at(`seen-${who}`);
  if (pixels) show(canvas, pixels, model.shape);
  else canvas.width = canvas.height = 1;
  canvas.setAttribute("aria-label", pixels ? label : "Nothing yet");
}

function draw() {
  const temperature = Number(at("temperature").value);
  const { keyless, keyed } = answers;
  const isFixed = Boolean(keyless ?? keyed) && !keyless?.scores && !keyed?.scores;
  at("temperature").disabled = isFixed;
  at("temperature-value").textContent = isFixed ? 1 : temperature;
  at("temperature-help").textContent = isFixed ? FIXED : TEMPERATURE;
  drawBars(at("bars"), model.classes, answers, temperature);
  for (const [who, answer] of Object.entries(answers)) at(`spread-${who}`).textContent = spread(answer, temperature);
  if (!keyed) at("spread-keyed").textContent = "Choose a key file, or enter a token.";
  at("verdict").textContent = verdict(keyless, keyed, temperature);
  at("difference").textContent = keyless && keyed ? difference(keyless, keyed, temperature) : "";
}

function spread(answer, temperature) {
  if (!answer) return "";
  return spreadInWords(chances(answer, temperature), model.classes.length, answer.policy);
}

function verdict(keyless, keyed, temperature) {
  const said = (answer) => {
    const share = chances(answer, temperature).get(answer.label);
    return model.classes[answer.label] + (share === undefined ? "" : ` (${percent(share)})`);
  };
  if (!keyless && !keyed) return "Choose, pick or draw a picture.";
  if (!keyless || !keyed) return `The model says ${said(keyless ?? keyed)}.`;
  if (keyless.label === keyed.label) return `Both say ${model.classes[keyed.label]}.`;
  return `Without a key: ${said(keyless)}. With it: ${said(keyed)}.`;
}

function difference(keyless, keyed, temperature) {
  const count = model.classes.length;
  const bits = divergence(chances(keyed, temperature), chances(keyless, temperature), count);
  if (bits === null) return "How far the answers are apart cannot be told from what is given away.";
  if (bits < 1e-3) return "The answers are the same: nothing was unlocked. Is it this box's key or token?";
  const size = bits < 20 ? bits.toFixed(2) : "more than 20";
  return `At temperature ${temperature} the partner's answer is ${size} bits away from the thief's (KL divergence).`;
}

async function attempt(work) {
  at("error").hidden = true;
  try {
    await work();
  } catch (error) {
    at("error").textContent = error.message;
    at("error").hidden = false;
  }
}

start();
