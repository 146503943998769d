(() => {
  const layers = report.layers;
  const LABELS = {
    ok: "fitted",
    random: "looks untrained",
    too_few: "too few eigenvalues",
    constant: "constant spectrum",
    no_tail: "no tail",
    zero: "all zero",
  };
  const COLUMNS = [
    { key: "name", label: "layer", text: true },
    { key: "kind", label: "kind", text: true },
    { key: "shape", label: "shape" },
    { key: "status", label: "status", text: true },
    { key: "alpha", label: "alpha", digits: 2 },
    { key: "stderr", label: "stderr", digits: 2 },
    { key: "ks", label: "KS", digits: 3 },
    { key: "numTail", label: "in tail" },
    { key: "stableRank", label: "stable rank", digits: 1 },
    { key: "numSpikes", label: "spikes" },
    { key: "mpKs", label: "MP distance", digits: 3 },
  ];
  let chosen = null;
  let sorting = { key: null, down: false };
  const exact = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));

  // ---- plots

  function drawDepth() {
    const rows = layers.map((layer, index) => ({ ...layer, index, place: layer.block === null ? layer.name : layer.block }));
    drawAgainstDepth("depth", rows, rows.filter((row) => row.alpha !== null), "alpha (smaller: heavier tail)", (drawn) => ({
      y: drawn.map((row) => row.alpha),
      error_y: { type: "data", array: drawn.map((row) => row.stderr), thickness: 1, width: 2 },
      customdata: drawn.map((row) => row.index),
      hovertemplate: "%{text}<br>alpha %{y:.2f}<extra></extra>",
    }));
  }

  function drawSpectrum() {
    const layer = layers[chosen];
    const total = layer.numEigenvalues;
    const traces = [
      {
        type: "scatter",
        mode: "markers",
        name: "eigenvalues",
        x: layer.eigenvalues,
        y: layer.ranks.map((rank) => rank / total),
        marker: { size: 5, color: color("--ink") },
        hovertemplate: "eigenvalue %{x:.4g}<br>fraction as large or larger %{y:.3g}<extra></extra>",
      },
    ];
    const shapes = [];
    const positive = layer.eigenvalues.length > 0;
    if (positive && layer.mpEdge !== null && layer.mpEdge > 0) {
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: Math.min(layer.eigenvalues[0], layer.mpEdge) / 1.05, x1: layer.mpEdge, y0: 0, y1: 1, fillcolor: color("--band"), line: { width: 0 }, layer: "below" });
      traces.push({ type: "scatter", mode: "lines", name: "bulk (Marchenko-Pastur)", x: [null], y: [null], line: { color: color("--soft"), width: 10 }, opacity: 0.4 });
      traces.push({ type: "scatter", mode: "lines", name: "random matrix of this shape and variance", x: layer.random[0], y: layer.random[1], line: { color: color("--warn"), dash: "dash", width: 1.5 }, hoverinfo: "skip" });
    }
    if (layer.alpha !== null) {
      const end = layer.lambdaMax;
      const points = [0, 0.25, 0.5, 0.75, 1].map((t) => layer.xmin * Math.pow(end / layer.xmin, t));
      traces.push({
        type: "scatter",
        mode: "lines",
        name: `fitted tail, alpha ${layer.alpha.toFixed(2)} ± ${layer.stderr.toFixed(2)}`,
        x: points,
        y: points.map((x) => (layer.numTail / total) * Math.pow(x / layer.xmin, 1 - layer.alpha)),
        line: { color: color("--accent"), width: 3 },
      });
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: layer.xmin, x1: layer.xmin, y0: 0, y1: 1, line: { color: color("--accent"), dash: "dot", width: 1.5 } });
      traces.push({ type: "scatter", mode: "lines", name: "xmin, start of the tail", x: [null], y: [null], line: { color: color("--accent"), dash: "dot" } });
    }
    Plotly.react(
      byId("spectrum"),
      traces,
      layout({
        shapes,
        xaxis: { type: "log", title: { text: "eigenvalue" }, exponentformat: "power", ...range(layer) },
        yaxis: { type: "log", title: { text: "fraction of eigenvalues as large or larger" }, exponentformat: "power" },
        legend: narrow() ? { orientation: "h", y: -0.25 } : { orientation: "h", y: 1.2 },
        margin: { l: 70, r: 20, t: narrow() ? 10 : 70, b: 60 },
      }),
      CONFIG,
    );
  }

  // The smallest eigenvalues of a square matrix are many decades below the rest: pan to see them.
  function range(layer) {
    if (layer.eigenvalues.length === 0) return {};
    const low = Math.max(layer.eigenvalues[0] / 1.3, layer.lambdaMax * 1e-5);
    return { range: [Math.log10(low), Math.log10(layer.lambdaMax * 1.5)] };
  }

  // One line per unit in each plot; a click on a name in the legend hides both. Blue = input, red = output.
  function drawHistory() {
    const { steps, units } = report.history;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const hue = (index) => 240 * (1 - (units.length > 1 ? index / (units.length - 1) : 0));
    const traces = units.flatMap((unit, index) => {
      const name = plain(unit.name);
      const line = { color: `hsl(${hue(index)}, 70%, ${dark ? 65 : 40}%)`, width: 2 };
      const common = { type: "scatter", mode: steps.length > 1 ? "lines" : "markers", name, x: steps, legendgroup: String(index) };
      return [
        { ...common, y: unit.alphas, line, showlegend: false, hovertemplate: `${name}<br>step %{x}: alpha %{y:.3f}<extra></extra>` },
        { ...common, y: unit.multipliers, yaxis: "y2", line: { ...line, shape: "hv" }, hovertemplate: `${name}<br>step %{x}: multiplier %{y:.3f}<extra></extra>` },
      ];
    });
    Plotly.react(
      byId("history"),
      traces,
      layout({
        xaxis: { title: { text: "optimizer steps" }, anchor: "y2" },
        yaxis: { title: { text: narrow() ? "alpha" : "alpha (smaller: heavier tail)" }, domain: [0.54, 1] },
        yaxis2: { title: { text: "multiplier" }, domain: [0, 0.46] },
        shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y2", y0: 1, y1: 1, line: { color: color("--soft"), dash: "dot", width: 1.5 } }],
        legend: narrow() ? { orientation: "h", y: -0.3 } : {},
        showlegend: units.length <= (narrow() ? 6 : 24),
      }),
      CONFIG,
    );
  }

  // ---- selection

  function choose(index) {
    chosen = index;
    const layer = layers[index];
    const title = byId("chosen");
    title.replaceChildren(element("b", layer.name));
    title.append(layer.alpha === null ? ` – ${layer.message}` : ` – alpha ${layer.alpha.toFixed(2)} ± ${layer.stderr.toFixed(2)}, KS distance ${layer.ks.toFixed(3)}`);
    byId("detail").textContent =
      `${layer.kind} ${layer.shape}` +
      (layer.numMatrices > 1 ? `, ${layer.numMatrices} matrices pooled` : "") +
      `; ${layer.numEigenvalues} eigenvalues, ${layer.numZero} are zero, largest ${exact(layer.lambdaMax)}` +
      `; MP edge ${exact(layer.mpEdge)}, ${layer.numSpikes} spikes above it` +
      `; stable rank ${exact(layer.stableRank)}, entropy ${exact(layer.entropy)}` +
      `; KS distance from a random matrix ${exact(layer.mpKs)}.`;
    for (const row of document.querySelectorAll("#layers tbody tr")) {
      row.setAttribute("aria-selected", String(Number(row.dataset.index) === index));
    }
    drawSpectrum();
  }

  // ---- table

  function head() {
    const row = document.querySelector("#layers thead tr");
    for (const column of COLUMNS) {
      const cell = element("th", undefined, column.text ? "text" : "");
      cell.scope = "col";
      cell.dataset.key = column.key;
      const button = element("button", column.label);
      button.type = "button";
      button.addEventListener("click", () => {
        const again = sorting.key === column.key; // ascending, descending, then model order
        sorting = again && sorting.down ? { key: null, down: false } : { key: column.key, down: again };
        body();
      });
      cell.append(button);
      row.append(cell);
    }
  }

  function compare(a, b) {
    const [x, y] = [layers[a][sorting.key], layers[b][sorting.key]];
    if (x === null || y === null) return (x === null) - (y === null); // missing values are last in both directions
    const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return sorting.down ? -order : order;
  }

  function body() {
    const wanted = byId("filter").value.toLowerCase();
    const status = byId("status").value;
    const rows = layers
      .map((_, i) => i)
      .filter((i) => layers[i].name.toLowerCase().includes(wanted) && (!status || layers[i].status === status));
    if (sorting.key) rows.sort(compare);
    for (const cell of document.querySelectorAll("#layers th")) {
      const mine = cell.dataset.key === sorting.key;
      cell.setAttribute("aria-sort", mine ? (sorting.down ? "descending" : "ascending") : "none");
    }
    document.querySelector("#layers tbody").replaceChildren(...rows.map(tableRow));
    byId("count").textContent = `${rows.length} of ${layers.length}`;
  }

  function tableRow(index) {
    const layer = layers[index];
    const row = element("tr");
    row.tabIndex = 0;
    row.dataset.index = index;
    row.setAttribute("aria-selected", String(index === chosen));
    for (const column of COLUMNS) {
      const value = column.key === "status" ? LABELS[layer.status] : column.text || column.key === "shape" ? layer[column.key] : number(layer[column.key], column.digits);
      const cell = element("td", value, column.text ? "text" : "");
      if (column.key === "status" && layer.status !== "ok") {
        cell.classList.add("odd");
        cell.title = layer.message;
      }
      row.append(cell);
    }
    row.addEventListener("click", () => choose(index));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(index);
      }
    });
    return row;
  }

  // ---- texts

  function facts() {
    const pieces = [`${layers.length} weight matrices`, `estimator ${report.settings.estimator}`];
    if (report.imbalance !== null) pieces.push(`imbalance over layers ${report.imbalance.toFixed(2)}`);
    if (report.blockImbalance !== null) pieces.push(`over blocks ${report.blockImbalance.toFixed(2)}`);
    const without = layers.filter((layer) => layer.alpha === null).length;
    const missing = without > 0 ? ` Not drawn: ${without} without an alpha (see the table).` : "";
    byId("facts").textContent = `${pieces.join(", ")}. Bars are standard errors.${missing} Click a point or a row of the table to select a layer.`;
  }

  function statuses() {
    for (const status of new Set(layers.map((layer) => layer.status))) {
      const option = element("option", LABELS[status]);
      option.value = status;
      byId("status").append(option);
    }
  }

  function skipped() {
    if (report.skipped.length === 0) byId("skipped-section").hidden = true;
    for (const group of report.skipped) {
      const line = element("p", `${group.names.length}: ${group.reason}`);
      byId("skipped").append(line, element("p", group.names.join(", "), "names"));
    }
  }

  function history() {
    if (report.history === null) {
      byId("history-section").hidden = true;
      return;
    }
    const { refreshes, steps, imbalance, units } = report.history;
    const withoutAlpha = units.filter((unit) => unit.alphas.every((alpha) => alpha === null)).map((unit) => unit.name);
    byId("history-facts").textContent =
      `${units.length} ${units.length === 1 ? "unit" : "units"}, ${refreshes} ${refreshes === 1 ? "refresh" : "refreshes"} from step ${steps[0]} to ${steps[steps.length - 1]}` +
      (refreshes > steps.length ? `, ${steps.length} drawn` : "") +
      `; imbalance ${number(imbalance[0], 3)} at the first, ${number(imbalance[1], 3)} at the last.` +
      (withoutAlpha.length > 0 ? ` Without an alpha: ${withoutAlpha.join(", ")}.` : "") +
      " Blue = input, red = output; hover for names.";
    drawHistory();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawHistory);
  }

  function settings() {
    for (const [key, value] of Object.entries(report.settings)) {
      byId("settings").append(element("dt", key), element("dd", value));
    }
  }

  facts();
  statuses();
  skipped();
  settings();
  history();
  head();
  body();
  if (layers.length > 0) {
    drawDepth();
    byId("depth").on("plotly_click", (event) => choose(event.points[0].customdata));
    const smallest = layers.map((_, i) => i).filter((i) => layers[i].alpha !== null);
    choose(smallest.length > 0 ? smallest.reduce((a, b) => (layers[a].alpha <= layers[b].alpha ? a : b)) : 0);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      drawDepth();
      drawSpectrum();
    });
  }
  byId("filter").addEventListener("input", body);
  byId("status").addEventListener("change", body);
})();
