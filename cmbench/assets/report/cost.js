"use strict";
// Quality against cost: every row of a data set, in any metric, against evaluations, seconds an image or training.
(() => {
  const root = document.getElementById("cost");
  const { datasets } = cmbench.data;
  if (!root || !datasets.length) return;
  const { element } = cmbench;
  const COSTS = {
    evaluations: "network evaluations a sample (NFE)",
    seconds: "seconds an image",
    training: "seconds of training",
  };
  let data = [...datasets].sort((a, b) => b.rows.length - a.rows.length)[0]; // most is to be seen there
  let lines = new Map(); // "group\nline" -> {look, field}
  const plot = new cmbench.Plot(document.getElementById("cost-plot"), "Quality against cost", (point) => cmbench.open(point.id));

  const dataset = cmbench.select("Data set", datasets.map((one) => [one.name, one.title]), () => choose());
  const metric = cmbench.select("Quality", [], () => { scale(); draw(); });
  const cost = cmbench.select("Cost", Object.entries(COSTS), () => draw());
  const conditions = cmbench.select("Measured under", [], () => draw());
  const logX = cmbench.check("log cost", true, () => draw());
  const logY = cmbench.check("log quality", true, () => draw());
  const front = cmbench.check("Pareto front only", false, () => draw());
  const paper = cmbench.check("published", true, () => draw());
  metric.field.id = "cost-metric";
  cost.field.id = "cost-x";
  logY.field.id = "cost-log-y";
  document.getElementById("cost-controls").append(
    dataset.label, conditions.label, metric.label, cost.label, logX.label, logY.label, front.label, paper.label,
  );
  dataset.label.hidden = datasets.length < 2;
  dataset.field.value = data.name;

  function choose() {
    data = datasets.find((one) => one.name === dataset.field.value);
    const options = (pairs) => pairs.map(([value, text]) => element("option", { value }, text));
    const arrow = { lower: " ↓", higher: " ↑" };
    metric.field.replaceChildren(...options(data.metrics.map((one) => [one.id, one.title + (arrow[one.better] || "")])));
    conditions.field.replaceChildren(...options(Object.entries(data.conditions)));
    conditions.label.hidden = Object.keys(data.conditions).length < 2;
    for (const { field } of [conditions, dataset]) field.disabled = field.parentElement.hidden;
    paper.label.hidden = !data.published.length;
    legend();
    scale();
    draw();
  }

  // Distances spread over decades; what is better when higher mostly lies between 0 and 1, or within one decade.
  function scale() {
    const { better } = data.metrics.find((one) => one.id === metric.field.value) || {};
    logY.field.checked = better !== "higher";
  }

  function legend() {
    lines = new Map();
    const groups = new Map();
    for (const row of data.rows) {
      const key = `${row.group}\n${row.line}`;
      if (lines.has(key)) continue;
      const look = cmbench.look(lines.size);
      const one = cmbench.check(row.line, true, () => { tick(row.group); draw(); }, cmbench.swatch(look));
      lines.set(key, { look, field: one.field, group: row.group });
      if (!groups.has(row.group)) groups.set(row.group, []);
      groups.get(row.group).push(one.label);
    }
    const fieldsets = [...groups].map(([group, labels]) => {
      const whole = cmbench.check(group || "no group", true, () => {
        for (const line of lines.values()) if (line.group === group) line.field.checked = whole.field.checked;
        draw();
      });
      whole.field.dataset.group = group;
      return element("fieldset", {}, element("legend", {}, whole.label), element("div", {}, ...labels));
    });
    root.querySelector(".legend-groups").replaceChildren(...fieldsets);
  }

  function groupBox(group) {
    return [...root.querySelectorAll(".legend-groups legend input")].find((box) => box.dataset.group === group);
  }

  // A group's box follows its methods.
  function tick(group) {
    const own = [...lines.values()].filter((line) => line.group === group);
    const on = own.filter((line) => line.field.checked).length;
    const box = groupBox(group);
    box.checked = on === own.length;
    box.indeterminate = on > 0 && on < own.length;
  }

  // Rows that no other row is at least as cheap and as good as: ascending in cost.
  function frontOf(points, better) {
    const best = [];
    const sign = better === "higher" ? -1 : 1;
    for (const point of [...points].sort((a, b) => a.x - b.x || sign * (a.y - b.y))) {
      if (!best.length || sign * (best[best.length - 1].y - point.y) > 0) best.push(point);
    }
    return best;
  }

  function pointOf(row, title) {
    const figure = row.metrics[metric.field.value];
    const x = row.costs[cost.field.value];
    if (!figure || x === null) return null;
    const counted = `NFE ${cmbench.plain(row.costs.evaluations)}`;
    const costs = [counted];
    if (row.costs.seconds !== null) costs.push(`${cmbench.plain(row.costs.seconds)} s an image`);
    if (row.costs.training !== null) costs.push(`${cmbench.plain(row.costs.training)} s of training`);
    return {
      x, y: figure.mean, low: figure.low, high: figure.high, id: row.id, name: row.line, value: figure.text,
      text: `${title} ${figure.text}`, lines: [costs.join(", "), ...row.from], short: `${row.line}, ${counted}`,
    };
  }

  function draw() {
    const { title, better } = data.metrics.find((one) => one.id === metric.field.value) || { title: "", better: null };
    const own = data.rows.filter((row) => row.conditions === conditions.field.value)
      .sort((a, b) => a.costs.evaluations - b.costs.evaluations);
    const points = new Map();
    let lacking = 0;
    for (const row of own) {
      const key = `${row.group}\n${row.line}`;
      if (!lines.get(key).field.checked) continue;
      const point = pointOf(row, title);
      if (!point) { lacking += 1; continue; }
      if (!points.has(key)) points.set(key, []);
      points.get(key).push(point);
    }
    const best = better ? frontOf([...points.values()].flat().filter((point) => !logX.field.checked || point.x > 0), better) : [];
    for (const point of best) {
      point.tag = point.short;
      point.below = better !== "higher";
    }
    const series = [...points].map(([key, list]) => ({
      name: key.split("\n").pop(), look: lines.get(key).look, line: !front.field.checked && cost.field.value !== "training",
      points: front.field.checked ? list.filter((point) => best.includes(point)) : list,
    }));
    if (paper.field.checked && cost.field.value === "evaluations" && !front.field.checked) {
      const names = new Map([...lines].map(([key, line]) => [key.split("\n").pop(), line]));
      const printed = new Map();
      for (const row of data.published) {
        const point = pointOf(row, title);
        const box = names.has(row.line) ? names.get(row.line).field : groupBox(row.group);
        if (!point || (box && !box.checked && !box.indeterminate)) continue;
        if (!printed.has(row.line)) printed.set(row.line, []);
        printed.get(row.line).push({ ...point, name: `${row.line} (published)` });
      }
      for (const [name, list] of printed) {
        const known = names.get(name);
        const look = known ? known.look : { colour: "#8a929a", marker: "circle", dash: [2, 3] };
        series.push({ name: `${name} (published)`, look: { ...look, hollow: true }, hollow: true, line: false, points: list });
      }
    }
    plot.show({
      series,
      front: best.map(({ x, y }) => ({ x, y })),
      x: { title: COSTS[cost.field.value], log: logX.field.checked },
      y: { title, better, log: logY.field.checked },
      dropped: lacking ? `${lacking} of ${own.length} rows have no figure for these axes.` : "",
    });
  }

  if (matchMedia("(max-width: 620px)").matches) document.getElementById("cost-legend").open = false;
  cmbench.cost = plot;
  choose();
})();
