(() => {
  const rows = report.layers;
  const moved = rows.filter((row) => row.relative !== null);
  const compared = rows.filter((row) => row.delta !== null);
  const COLUMNS = [
    { key: "name", label: "layer", text: true },
    { key: "shape", label: "shape", text: true },
    { key: "relative", label: "relative change" },
    { key: "stableRank", label: "stable rank of dW", digits: 2 },
    { key: "effectiveRank", label: "effective rank of dW", digits: 1 },
    { key: "before", label: "alpha before", digits: 3 },
    { key: "after", label: "after", digits: 3 },
    { key: "delta", label: "change", digits: 3 },
    { key: "z", label: "change / stderr", digits: 1 },
  ];

  function draw() {
    if (moved.length > 0) {
      const top = (row) => (row.identical ? "identical" : row.values.slice(0, 4).map((value) => Number(value.toPrecision(3))).join(", "));
      drawAgainstDepth("weights", rows, moved, "relative change", (drawn) => ({
        y: drawn.map((row) => row.relative),
        customdata: drawn.map(top),
        hovertemplate: "%{text}<br>relative change %{y:.4g}<br>singular values of dW: %{customdata}<extra></extra>",
      }));
    }
    if (compared.length > 0) {
      drawAgainstDepth("alpha", rows, compared, "change of alpha", (drawn) => ({
        y: drawn.map((row) => row.delta),
        error_y: { type: "data", array: drawn.map((row) => row.stderr), thickness: 1, width: 2 },
        customdata: drawn.map((row) => `${number(row.before, 2)} to ${number(row.after, 2)}`),
        hovertemplate: "%{text}<br>alpha %{customdata}: %{y:+.3f}<extra></extra>",
      }));
    }
  }

  byId("weights-section").hidden = moved.length === 0;
  byId("alpha-facts").textContent = `Bars are standard errors. Not drawn: ${rows.length - compared.length} of ${rows.length} without an alpha in both.`;
  listFindings("findings", report.findings);
  sortableTable("changes", COLUMNS, rows);
  for (const [key, value] of Object.entries(report.settings)) {
    byId("settings").append(element("dt", key), element("dd", value));
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
