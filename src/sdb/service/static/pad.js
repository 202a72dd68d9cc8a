// A pad to draw on, by mouse, finger, pen or keyboard.

import { contextOf } from "./pictures.js";

const STEP = 1 / 16; // of the pad's side, for one arrow key
const PEN = 0.11; // the line's width, likewise
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Make a canvas a drawing pad.
 *
 * @param {HTMLCanvasElement} canvas the pad.
 * @param {HTMLElement} pointer a mark over it that shows where the keyboard's pen is.
 * @param {{paper: string, ink: string}} colours of the drawing.
 * @param {() => void} onDrawn called after each line.
 * @returns {() => void} wipes the pad.
 */
export function makePad(canvas, pointer, { paper, ink }, onDrawn) {
  const context = contextOf(canvas);
  const side = canvas.width;
  let last = [side / 2, side / 2];
  let isDown = false; // of the keyboard's pen

  function wipe() {
    context.fillStyle = paper;
    context.fillRect(0, 0, side, side);
  }

  function lineTo(point) {
    Object.assign(context, { strokeStyle: ink, lineWidth: PEN * side, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...point);
    context.stroke();
    last = point;
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
  }

  function showPointer() {
    pointer.style.left = `${(100 * last[0]) / side}%`;
    pointer.style.top = `${(100 * last[1]) / side}%`;
    pointer.classList.toggle("down", isDown);
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    lineTo(last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) lineTo(place(event));
  });
  canvas.addEventListener("pointerup", () => {
    showPointer();
    onDrawn();
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") {
      isDown = !isDown;
      if (isDown) lineTo(last);
      else onDrawn();
    } else if (event.key in ARROWS) {
      const point = ARROWS[event.key].map((way, i) => Math.min(side, Math.max(0, last[i] + way * STEP * side)));
      if (isDown) lineTo(point);
      last = point;
    } else {
      return;
    }
    event.preventDefault();
    showPointer();
  });
  canvas.addEventListener("blur", () => {
    if (isDown) onDrawn();
    isDown = false;
    showPointer();
  });
  wipe();
  showPointer();
  return wipe;
}
