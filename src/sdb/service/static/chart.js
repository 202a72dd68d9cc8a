// The two answers as one table: a row for each class, a bar for each answer.

import { chances } from "./answers.js";

const ROWS = 12; // more classes than this: only the likeliest are shown
const SHOWN = 10;

/**
 * Fill the table's body.
 *
 * @param {HTMLTableSectionElement} body to fill.
 * @param {string[]} classes names in label order.
 * @param {{keyless: object | null, keyed: object | null}} answers as `readAnswer` gives them; null for none.
 * @param {number} temperature of the bars.
 */
export function drawBars(body, classes, answers, temperature) {
  const columns = Object.entries(answers).map(([name, answer]) => ({
    name,
    answer,
    known: answer && chances(answer, temperature),
  }));
  const shown = rowsFor(classes.length, columns);
  const rows = shown.map((index) => {
    const row = document.createElement("tr");
    const head = element("th", classes[index]);
    head.scope = "row";
    row.append(head, ...columns.map((column) => cell(column, index)));
    return row;
  });
  if (shown.length < classes.length) rows.push(restRow(classes.length - shown.length, shown, columns));
  body.replaceChildren(...rows);
}

function rowsFor(count, columns) {
  const all = Array.from({ length: count }, (_, index) => index);
  if (count <= ROWS) return all;
  const best = (index) =>
    Math.max(...columns.map(({ answer, known }) => (answer?.label === index ? 1 : (known?.get(index) ?? 0))));
  return all.sort((a, b) => best(b) - best(a)).slice(0, SHOWN);
}

function restRow(count, shown, columns) {
  const row = document.createElement("tr");
  row.className = "rest";
  const head = element("th", `${count} others`);
  head.scope = "row";
  row.append(head);
  for (const { known } of columns) {
    const share = shown.reduce((rest, index) => rest - (known?.get(index) ?? 0), 1);
    row.append(element("td", known?.size ? percent(Math.max(0, share)) : ""));
  }
  return row;
}

function cell({ name, answer, known }, index) {
  const td = element("td", "");
  td.className = name;
  if (!answer) return td;
  td.classList.toggle("label", answer.label === index);
  const chance = known.get(index);
  if (chance === undefined) {
    td.append(element("span", answer.label === index ? "label" : "not given"));
    return td;
  }
  const track = element("i", "");
  const bar = element("b", "");
  bar.style.width = `${100 * chance}%`;
  track.append(bar);
  td.append(track, element("span", percent(chance)));
  return td;
}

/** A share for people: 98.2 %, and never 0 % or 100 % for what is not. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share >= 0.9995) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
