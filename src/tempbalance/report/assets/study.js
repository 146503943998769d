(() => {
  const rows = report.rows;
  const signed = (value) => (value > 0 ? "+" : "") + short(value);
  const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
  const COLUMNS = [
    { label: "method", of: (row) => row.chosen, text: true },
    { label: "mean", of: (row) => short(row.mean) },
    { label: "gain", of: (row) => (row.gain ? signed(row.gain.mean) : "") },
    { label: "95 % interval", of: (row) => (row.gain ? `${signed(row.gain.low)} to ${signed(row.gain.high)}` : "") },
    { label: "won", of: (row) => (row.gain ? `${row.gain.won} of ${row.gain.won + row.gain.tied + row.gain.lost}` : "") },
    { label: "tied", of: (row) => (row.gain ? row.gain.tied : "") },
    { label: "p", of: (row) => (row.gain ? Number(row.p_value.toPrecision(2)) : "") },
    { label: "diverged", of: (row) => row.diverged, odd: true },
    { label: "failed", of: (row) => row.failed, odd: true },
  ];

  function draw() {
    const drawn = rows.filter((row) => row.gain !== null);
    const place = (index) => drawn.length - 1 - index; // the first on top
    const dots = drawn.map((row, index) => {
      const seeds = Object.entries(row.gains).filter(([, gain]) => gain !== null);
      return {
        type: "scatter",
        mode: "markers",
        x: seeds.map(([, gain]) => gain),
        y: seeds.map((_, i) => place(index) - 0.22 + 0.1 * Math.sin(i * 2.4)), // spread, so that equal gains are visible
        text: seeds.map(([seed]) => `seed ${seed}`),
        marker: { size: 6, color: color("--soft"), opacity: 0.6 },
        hovertemplate: "%{text}: %{x:.4g}<extra></extra>",
      };
    });
    const finite = drawn.map((row, index) => ({ gain: row.gain, y: place(index) })).filter(({ gain }) => gain.mean !== null);
    const means = {
      type: "scatter",
      mode: "markers",
      x: finite.map(({ gain }) => gain.mean),
      y: finite.map(({ y }) => y + 0.1),
      error_x: {
        type: "data",
        symmetric: false,
        array: finite.map(({ gain }) => gain.high - gain.mean),
        arrayminus: finite.map(({ gain }) => gain.mean - gain.low),
        color: color("--accent"),
        thickness: 3,
        width: 6,
      },
      marker: { size: 11, symbol: "diamond", color: color("--accent") },
      hovertemplate: "mean %{x:.4g}<extra></extra>",
    };
    byId("gains").style.height = `${Math.max(14, 6 + 4 * drawn.length)}rem`;
    Plotly.react(
      byId("gains"),
      [...dots, means],
      layout({
        showlegend: false,
        xaxis: { title: { text: "gain (positive: better)" } },
        yaxis: {
          tickvals: drawn.map((_, index) => place(index)),
          ticktext: drawn.map((row) => wrap(row.chosen)),
          range: [-0.6, drawn.length - 0.4],
          automargin: true,
        },
        shapes: [{ type: "line", xref: "x", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: color("--ink"), width: 1.5 } }],
      }),
      CONFIG,
    );
  }

  const wrap = (name) => plain(name).replace(/[:, ]/g, "$&<br>");

  function table() {
    for (const column of COLUMNS) {
      const cell = element("th", column.label, column.text ? "text" : "");
      cell.scope = "col";
      document.querySelector("#methods thead tr").append(cell);
    }
    for (const row of rows) {
      const line = element("tr");
      for (const column of COLUMNS) {
        const value = column.of(row);
        line.append(element("td", String(value), column.text ? "text" : column.odd && value > 0 ? "odd" : ""));
      }
      document.querySelector("#methods tbody").append(line);
    }
  }

  for (const note of report.notes) byId("notes").append(element("li", note));
  for (const [key, value] of Object.entries(report.settings)) {
    byId("settings").append(element("dt", key), element("dd", value));
  }
  table();
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
