"use strict";

// Shared by all pages: the data, elements, and plots in the colours of the page.

const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const narrow = () => innerWidth < 700;
const number = (value, digits) =>
  value === null ? "–" : digits === undefined ? String(value) : value.toFixed(digits);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

function layout(extra) {
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line") };
  const axes = Object.entries({ xaxis: {}, yaxis: {}, ...extra }).filter(([key]) => key.includes("axis"));
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("--ink"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 60, r: 20, t: 20, b: 60 },
    hovermode: "closest",
    ...extra,
    ...Object.fromEntries(axes.map(([key, value]) => [key, { ...axis, ...value }])),
  };
}

const plain = (name) => name.replace(/</g, "&lt;");
const shorten = (name) => plain(name.length <= 22 ? name : `…${name.slice(-21)}`);

// Layers against depth, one trace per type. A place is a block or a layer outside all blocks, in model order.
function drawAgainstDepth(id, rows, drawn, title, trace, more = []) {
  const places = [...new Set(rows.map((row) => row.place))];
  const types = [...new Set(drawn.map((row) => row.type))];
  const spread = Math.min(0.6, 0.08 * types.length);
  const traces = types.map((type, index) => {
    const sameType = drawn.filter((row) => row.type === type);
    const shift = types.length > 1 ? (index / (types.length - 1) - 0.5) * spread : 0;
    return {
      type: "scatter",
      mode: "markers",
      name: type,
      x: sameType.map((row) => places.indexOf(row.place) + shift),
      marker: { size: 8, symbol: index % 30 },
      text: sameType.map((row) => `${plain(row.name)}<br>${row.shape}`),
      ...trace(sameType),
    };
  });
  const step = Math.ceil(places.length / 16);
  const shown = places.map((_, i) => i).filter((i) => i % step === 0);
  const tilted = places.length > 8 || narrow();
  const ticks = { tickvals: shown, ticktext: shown.map((i) => shorten(places[i].replace(/\.weight$/, ""))), tickangle: tilted ? -40 : 0 };
  Plotly.react(
    byId(id),
    [...traces, ...more],
    layout({
      xaxis: { title: { text: narrow() ? "" : "block, from input to output", standoff: 8 }, automargin: true, ...ticks },
      yaxis: { title: { text: title } },
      margin: { l: 60, r: 20, t: 20, b: tilted ? 110 : 60 },
      legend: narrow() ? { orientation: "h", y: -0.45 } : {},
      showlegend: types.length <= 24,
    }),
    CONFIG,
  );
}

function listFindings(id, findings) {
  for (const finding of findings) {
    const line = element("li", undefined, finding.severity);
    line.append(element("b", finding.severity), ` ${finding.message}. `);
    if (finding.nextStep) line.append(element("span", `Next: ${finding.nextStep}.`));
    byId(id).append(line);
  }
  if (findings.length === 0) byId(id).append(element("li", "No finding."));
}

// A table with one row per object. A click on a heading sorts: ascending, descending, then as given.
function sortableTable(id, columns, rows) {
  let sorted = { key: null, down: false };
  const body = () => {
    const order = (a, b) => {
      const [x, y] = [a[sorted.key], b[sorted.key]];
      if (x === null || y === null) return (x === null) - (y === null); // missing values are last in both directions
      const sign = sorted.down ? -1 : 1;
      return sign * (typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
    };
    for (const cell of document.querySelectorAll(`#${id} th`)) {
      const mine = cell.dataset.key === sorted.key;
      cell.setAttribute("aria-sort", mine ? (sorted.down ? "descending" : "ascending") : "none");
    }
    const lines = (sorted.key === null ? rows : [...rows].sort(order)).map((row) => {
      const line = element("tr");
      line.append(...columns.map(({ key, text, digits }) => element("td", text ? row[key] : number(row[key], digits), text ? "text" : "")));
      return line;
    });
    document.querySelector(`#${id} tbody`).replaceChildren(...lines);
  };
  for (const { key, label, text } of columns) {
    const cell = element("th", undefined, text ? "text" : "");
    cell.scope = "col";
    cell.dataset.key = key;
    const button = element("button", label);
    button.type = "button";
    button.addEventListener("click", () => {
      const again = sorted.key === key;
      sorted = again && sorted.down ? { key: null, down: false } : { key, down: again };
      body();
    });
    cell.append(button);
    document.querySelector(`#${id} thead tr`).append(cell);
  }
  body();
}
