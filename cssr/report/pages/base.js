// Shared by all parts of the page, which follow it in blocks of their own; sorting; printing.
"use strict";
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
document.documentElement.classList.add("scripted");

const make = (name, text, more = {}) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  return Object.assign(element, more);
};
const number = (value, decimals) => (value === null || value === undefined ? "-" : value.toFixed(decimals));
const percent = (level) => (level / 100).toFixed(2);

// ---- sorting: a heading's button, first to the greater end, then to the other ----

const compare = (a, b, down) => {
  if (a === null || b === null) return (a === null) - (b === null); // what was not measured comes last
  return (down ? -1 : 1) * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
};
const sortRows = (table, column, down) => {
  const body = table.tBodies[0];
  const of = (row) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const rows = [...body.rows].map((row) => [of(row), row]);
  rows.sort(([a], [b]) => compare(a, b, down));
  body.append(...rows.map(([, row]) => row));
};
const turn = (heading) => {
  const words = !heading.classList.contains("number");
  const before = heading.getAttribute("aria-sort");
  const now = before ? (before === "ascending" ? "descending" : "ascending") : words ? "ascending" : "descending";
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", now);
  return now === "descending";
};
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("button")?.closest("th");
    if (heading) sortRows(table, heading.cellIndex, turn(heading));
  });
}

// ---- on paper all is unfolded ----

const folded = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    folded.push(part);
    part.open = true;
  }
});
addEventListener("afterprint", () => folded.splice(0).forEach((part) => (part.open = false)));
