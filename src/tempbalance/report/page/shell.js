"use strict";

// What every page needs: its data, elements, and plots in the colours of the page.

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
