(() => {
  const rows = report.layers.map((layer) => ({
    ...layer,
    shape: layer.shape.join("x"),
    place: layer.unit,
    type: layer.name.startsWith(`${layer.unit}.`) ? layer.name.slice(layer.unit.length + 1).replace(/\.weight$/, "") : "weight",
  }));

  function drawSparsity() {
    const planned = {
      type: "scatter",
      mode: "lines",
      name: "planned",
      x: report.units.map((_, place) => place),
      y: report.units.map((unit) => unit.planned),
      line: { shape: "hvh", color: color("--accent"), width: 2 },
      text: report.units.map((unit) => plain(unit.name)),
      hovertemplate: "%{text}<br>planned %{y:.3f}<extra></extra>",
    };
    const trace = (drawn) => ({
      y: drawn.map((row) => row.achieved),
      customdata: drawn.map((row) => row.planned),
      hovertemplate: "%{text}<br>achieved %{y:.3f}, planned %{customdata:.3f}<extra></extra>",
    });
    drawAgainstDepth("sparsity", rows, rows, "sparsity", trace, [planned]);
  }

  function drawAlpha() {
    const fitted = rows.filter((row) => row.alpha !== null);
    const missing = rows.length - fitted.length;
    const units = report.units.filter((unit) => unit.alpha !== null).sort((a, b) => a.alpha - b.alpha);
    const mean = (unit) => `${unit.alpha.toFixed(2)} ± ${number(unit.stderr, 2)} in ${unit.name}`;
    byId("alpha-facts").textContent =
      (units.length > 1 ? `Mean alpha ranges from ${mean(units[0])} to ${mean(units[units.length - 1])}. ` : "") +
      `Bars are standard errors.${missing > 0 ? ` Not drawn: ${missing} without an alpha.` : ""}`;
    const trace = (drawn) => ({
      y: drawn.map((row) => row.alpha),
      error_y: { type: "data", array: drawn.map((row) => row.stderr), thickness: 1, width: 2 },
      customdata: drawn.map((row) => row.achieved),
      hovertemplate: "%{text}<br>alpha %{y:.2f}, sparsity %{customdata:.3f}<extra></extra>",
    });
    drawAgainstDepth("alpha", rows, fitted, "alpha (smaller: heavier tail)", trace);
  }

  function table(id, columns, lines) {
    for (const { label, text } of columns) {
      const cell = element("th", label, text ? "text" : "");
      cell.scope = "col";
      document.querySelector(`#${id} thead tr`).append(cell);
    }
    for (const line of lines) {
      const row = element("tr");
      row.append(...columns.map(({ key, text, digits }) => element("td", text ? line[key] : number(line[key], digits), text ? "text" : "")));
      document.querySelector(`#${id} tbody`).append(row);
    }
  }

  function draw() {
    drawSparsity();
    drawAlpha();
  }

  if (report.perplexity === null) {
    byId("perplexity-section").hidden = true;
  } else {
    const columns = [
      { key: "model", label: "model", text: true },
      { key: "value", label: "perplexity", digits: 3 },
      { key: "stderr", label: "stderr", digits: 3 },
      { key: "tokens", label: "tokens" },
    ];
    table("perplexity", columns, Object.entries(report.perplexity).map(([model, found]) => ({ model, ...found })));
  }
  const columns = [
    { key: "name", label: "layer", text: true },
    { key: "shape", label: "shape", text: true },
    { key: "alpha", label: "alpha", digits: 2 },
    { key: "stderr", label: "stderr", digits: 2 },
    { key: "planned", label: "planned", digits: 4 },
    { key: "achieved", label: "achieved", digits: 4 },
  ];
  table("weights", columns, rows);
  for (const [key, value] of Object.entries(report.settings)) {
    byId("settings").append(element("dt", key), element("dd", String(value)));
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
