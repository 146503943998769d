"use strict";

// Draws the figures of the page, in its colours, and makes its tables sortable. Texts and figures come from Python.

const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const MISSING = "–";
const NARROW = "(max-width: 700px)";

// ---- figures

async function load() {
  const bytes = Uint8Array.from(atob(byId("plotly").textContent), (character) => character.charCodeAt(0));
  const library = document.createElement("script");
  const text = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  library.textContent = await new Response(text).text();
  document.head.append(library);
}

function template() {
  const axis = { gridcolor: color("--line"), linecolor: color("--line"), tickfont: { color: color("--soft") } };
  return {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--ink"), family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--ink") },
      xaxis: axis,
      yaxis: axis,
    },
  };
}

const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

function draw(id, figure) {
  if (!globalThis.Plotly) return;
  const named = figure.layout.showlegend ? figure.data.filter((trace) => trace.showlegend !== false).length : 0;
  const height = figure.layout.height + (matchMedia(NARROW).matches ? 20 * Math.min(named, 12) : 0); // a line for each name
  byId(id).style.height = `${height}px`;
  Plotly.react(id, figure.data, { ...figure.layout, height, template: template() }, CONFIG);
}

function drawAll() {
  for (const [id, figure] of Object.entries(report.figures)) draw(id, figure);
  if (chosen !== null) draw("spectrum", report.layers[chosen].figure);
}

// ---- the selected layer

let chosen = null;

function choose(index) {
  chosen = index;
  const layer = report.layers[index];
  const name = document.createElement("b");
  name.textContent = layer.name;
  byId("chosen").replaceChildren(name, ` – ${layer.verdict}`);
  byId("detail").textContent = layer.detail;
  for (const row of document.querySelectorAll("#layers tbody tr")) mark(row);
  reveal(document.querySelector("#layers tr[aria-selected=true]"));
  draw("spectrum", layer.figure);
}

function mark(row) {
  const mine = Number(row.dataset.index) === chosen;
  row.setAttribute("aria-selected", String(mine));
  row.tabIndex = mine ? 0 : -1;
}

// Scroll the table, not the page.
function reveal(row) {
  const box = row?.closest(".scroll");
  if (!box || (row.offsetTop > box.scrollTop + row.offsetHeight && row.offsetTop + row.offsetHeight < box.scrollTop + box.clientHeight)) return;
  box.scrollTop = row.offsetTop - box.clientHeight / 2;
}

const STEPS = { ArrowDown: 1, ArrowUp: -1 };

function selectable(table) {
  const select = (row) => {
    choose(Number(row.dataset.index));
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  };
  table.tBodies[0].addEventListener("click", (event) => select(event.target.closest("tr")));
  table.tBodies[0].addEventListener("keydown", (event) => {
    const rows = [...table.tBodies[0].rows];
    const target = event.target.closest("tr");
    const next = event.key in STEPS ? rows[rows.indexOf(target) + STEPS[event.key]] : target;
    if (!(event.key in STEPS || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    if (next) select(next);
  });
}

// ---- tables

// A click on a heading sorts: ascending, descending, then as given. Missing values are last in both directions.
function sortable(table) {
  const rows = [...table.tBodies[0].rows];
  const headings = [...table.tHead.rows[0].cells];
  const cell = (row, column) => row.cells[column].textContent;
  let [sorted, sign] = [null, 1];

  function order(a, b) {
    const [x, y] = [cell(a, sorted), cell(b, sorted)];
    const [noX, noY] = [x, y].map((text) => text === MISSING || text === "");
    if (noX || noY) return noX - noY;
    const difference = headings[sorted].classList.contains("text") ? 0 : parseFloat(x) - parseFloat(y); // of "+0.1 to +0.2", too
    return sign * (difference || x.localeCompare(y, undefined, { numeric: true }));
  }

  function show() {
    const text = byId("filter")?.value.toLowerCase() ?? "";
    const group = byId("status")?.value ?? "";
    const shown = rows.filter((row) => cell(row, 0).toLowerCase().includes(text) && (!group || row.dataset.group === group));
    if (sorted !== null) shown.sort(order);
    headings.forEach((heading, column) => {
      heading.setAttribute("aria-sort", column !== sorted ? "none" : sign > 0 ? "ascending" : "descending");
    });
    table.tBodies[0].replaceChildren(...shown);
    if (byId("count")) byId("count").textContent = `${shown.length} of ${rows.length}`;
  }

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      if (column !== sorted) [sorted, sign] = [column, 1];
      else if (sign > 0) sign = -1;
      else sorted = null;
      show();
    });
  });
  byId("filter")?.addEventListener("input", show);
  byId("status")?.addEventListener("change", show);
  show();
}

document.querySelectorAll("table").forEach(sortable);
if (report.layers.length > 0) {
  selectable(byId("layers"));
  choose(Number(byId("layers").dataset.first));
}
load().then(
  () => {
    drawAll();
    byId("depth")?.on?.("plotly_click", (event) => report.layers.length > 0 && choose(event.points[0].customdata));
    for (const query of ["(prefers-color-scheme: dark)", NARROW]) matchMedia(query).addEventListener("change", drawAll);
  },
  () => document.querySelectorAll(".plot").forEach((node) => node.append("This browser is too old for the figures; the tables have the numbers.")),
);
