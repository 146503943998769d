(() => {
  const LABELS = { alpha: "alpha (smaller: heavier tail)", drift: "drift from the first checkpoint", stableRank: "stable rank" };
  const COLUMNS = [
    { key: "name", label: "checkpoint", text: true },
    { key: "step", label: "step" },
    { key: "alpha", label: "median alpha" },
    { key: "imbalance", label: "imbalance" },
    { key: "stableRank", label: "median stable rank" },
    { key: "drift", label: "drift" },
    { key: "findings", label: "findings", text: true },
  ];

  function draw() {
    const metric = byId("metric").value;
    const drawn = report.layers.filter((layer) => layer[metric].some((value) => value !== null));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const hue = (index) => 240 * (1 - (drawn.length > 1 ? index / (drawn.length - 1) : 0));
    const traces = drawn.map((layer, index) => ({
      type: "scatter",
      mode: report.steps.length > 1 ? "lines+markers" : "markers",
      name: shorten(layer.name.replace(/\.weight$/, "")),
      x: report.steps,
      y: layer[metric],
      line: { color: `hsl(${hue(index)}, 70%, ${dark ? 65 : 40}%)`, width: 1.5 },
      marker: { size: 4 },
      hovertemplate: `${plain(layer.name)}<br>${report.axis} %{x}: %{y:.4g}<extra></extra>`,
    }));
    Plotly.react(
      byId("lines"),
      traces,
      layout({
        xaxis: { title: { text: report.axis } },
        yaxis: { title: { text: LABELS[metric] } },
        showlegend: !narrow() && drawn.length <= 24,
      }),
      CONFIG,
    );
  }

  listFindings("findings", report.findings);
  sortableTable("checkpoints", COLUMNS, report.checkpoints);
  for (const [key, value] of Object.entries(report.settings)) {
    byId("settings").append(element("dt", key), element("dd", value));
  }
  draw();
  byId("metric").addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
