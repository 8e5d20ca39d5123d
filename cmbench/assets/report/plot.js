"use strict";
// A chart with whiskers or bands, its reading by keyboard, and its data as a table. Everything else here builds on it.
const cmbench = { data: JSON.parse(document.getElementById("data").textContent) };

// An element with properties and children; text only ever arrives as text.
cmbench.element = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "for" || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
};

cmbench.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

cmbench.plain = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return Number(value.toPrecision(3)).toExponential();
  return Number(value.toPrecision(size >= 1000 ? 4 : 3)).toLocaleString("en", { maximumFractionDigits: 6 });
};

// The look of the n-th curve: seven colours that colour-blind readers tell apart, seven markers that move on by one
// each time the colours repeat.
cmbench.MARKERS = ["circle", "rect", "triangle", "rectRot", "down", "cross", "crossRot"];
cmbench.DASHES = [[], [7, 3], [2, 2], [8, 3, 2, 3], [12, 4], [5, 2, 2, 2, 2, 2]];
cmbench.look = (place) => {
  const { colours } = cmbench.data;
  return {
    colour: colours[place % colours.length],
    marker: cmbench.MARKERS[(place + Math.floor(place / colours.length)) % cmbench.MARKERS.length],
    dash: cmbench.DASHES[place % cmbench.DASHES.length],
  };
};
// Black, the palette's last, is drawn in the ink of the page, which dark mode turns light.
cmbench.drawn = (colour) => (colour === "#000000" ? cmbench.colour("--black-line") : colour);

cmbench.swatch = (look) => {
  const SVG = "http://www.w3.org/2000/svg";
  const shapes = {
    circle: "M11 3a4 4 0 1 0 .01 0z", rect: "M7.5 3.5h7v7h-7z", triangle: "M11 2.6l4.6 8h-9.2z", rectRot: "M11 2l5 5-5 5-5-5z",
    down: "M11 11.4l4.6-8h-9.2z", cross: "M11 2.5v9M6.5 7h9", crossRot: "M7.5 3.5l7 7M14.5 3.5l-7 7",
  };
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 22 14");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  const add = (d, attributes) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
    svg.append(path);
  };
  const stroke = look.colour === "#000000" ? "currentColor" : look.colour;
  add("M0 7h22", { stroke, "stroke-width": 1.4, "stroke-dasharray": look.dash.join(" ") || "none" });
  const open = look.marker.startsWith("cross");
  add(shapes[look.marker], { stroke, "stroke-width": open ? 2.2 : 1, fill: open ? "none" : look.hollow ? "var(--paper)" : stroke });
  return svg;
};

// A labelled <select>; `choices` are [value, text] pairs.
cmbench.select = (text, choices, onchange, className = "pick") => {
  const field = cmbench.element("select", { onchange });
  for (const [value, name] of choices) field.append(cmbench.element("option", { value }, name));
  return { field, label: cmbench.element("label", { className }, text, field) };
};

cmbench.check = (text, checked, onchange, ...before) => {
  const field = cmbench.element("input", { type: "checkbox", checked, onchange });
  return { field, label: cmbench.element("label", {}, field, ...before, text) };
};

cmbench.whiskers = {
  id: "whiskers",
  beforeDatasetsDraw(chart) {
    const { ctx, scales: { y } } = chart;
    ctx.save();
    chart.data.datasets.forEach((set, place) => {
      const drawn = chart.getDatasetMeta(place).data;
      if (set.band && set.data.length > 1) {
        ctx.globalAlpha = 0.16;
        ctx.fillStyle = set.borderColor;
        ctx.beginPath();
        set.data.forEach((point, at) => ctx.lineTo(drawn[at].x, y.getPixelForValue(point.high)));
        [...set.data.keys()].reverse().forEach((at) => ctx.lineTo(drawn[at].x, y.getPixelForValue(set.data[at].low)));
        ctx.fill();
      }
      ctx.globalAlpha = 0.75;
      ctx.strokeStyle = set.borderColor;
      ctx.lineWidth = 1.2;
      set.data.forEach((point, at) => {
        if (point.high === undefined || point.high === point.low) return;
        ctx.beginPath();
        ctx.moveTo(drawn[at].x, y.getPixelForValue(point.low));
        ctx.lineTo(drawn[at].x, y.getPixelForValue(point.high));
        ctx.stroke();
      });
    });
    ctx.restore();
  },
  // Names beside the points of the front, where there is room between the marks; a thin line leads to those further off.
  afterDatasetsDraw(chart) {
    if (chart.width < 560) return;
    const { ctx, chartArea } = chart;
    ctx.save();
    ctx.font = `600 12px ${Chart.defaults.font.family}`;
    ctx.lineWidth = 0.8;
    const marks = chart.data.datasets.flatMap((set, place) => (set.front ? [] : chart.getDatasetMeta(place).data));
    const taken = marks.map(({ x, y }) => [x - 6, y - 6, x + 6, y + 6]);
    chart.data.datasets.forEach((set, place) => {
      set.data.forEach((point, at) => {
        if (!point.tag) return;
        const { x, y } = chart.getDatasetMeta(place).data[at];
        const width = ctx.measureText(point.tag).width;
        const box = cmbench.spot(x, y, width, point.below, taken, chartArea);
        if (!box) return;
        taken.push(box);
        ctx.strokeStyle = cmbench.colour("--soft");
        const [toX, toY] = [Math.min(Math.max(x, box[0]), box[2]), Math.min(Math.max(y, box[1]), box[3])];
        if (Math.hypot(toX - x, toY - y) > 12) {
          ctx.beginPath();
          ctx.moveTo(x, y);
          ctx.lineTo(toX, toY);
          ctx.stroke();
        }
        ctx.strokeStyle = cmbench.colour("--paper");
        ctx.lineWidth = 4;
        ctx.lineJoin = "round";
        ctx.strokeText(point.tag, box[0], box[3] - 3);
        ctx.lineWidth = 0.8;
        ctx.fillStyle = cmbench.colour("--ink");
        ctx.fillText(point.tag, box[0], box[3] - 3);
      });
    });
    ctx.restore();
  },
};

// Where a text of this width fits beside a mark: the first free box, near ones on the better side of the mark first.
cmbench.spot = (x, y, width, below, taken, area) => {
  const side = below ? 1 : -1;
  for (const off of [10, 24, 38, 54]) {
    for (const [left, turn] of [[x - 4, side], [x - width + 4, side], [x - width / 2, side], [x - 4, -side], [x - width + 4, -side]]) {
      const middle = y + turn * (off + 6);
      const box = [left, middle - 8, left + width, middle + 6];
      const inside = box[0] > area.left && box[2] < area.right + 10 && box[1] > area.top - 12 && box[3] < area.bottom;
      if (inside && taken.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3])) return box;
    }
  }
  return null;
};

cmbench.Plot = class {
  // `name` is said to those who hear the page; `onopen(point)` follows Enter or a click on a point, where it is given.
  constructor(root, name, onopen) {
    this.onopen = onopen;
    this.name = name;
    this.canvas = cmbench.element("canvas", { tabIndex: 0, role: "img" });
    const how = onopen ? "; Enter opens its row" : "";
    this.hint = `Point at a mark, or focus the chart and walk along it with the arrow keys${how}.`;
    this.readout = cmbench.element("div", { className: "readout", "aria-live": "polite" }, this.hint);
    this.dropped = cmbench.element("p", { className: "dropped" });
    this.table = cmbench.element("table", { className: "data" });
    root.append(
      cmbench.element("div", { className: "canvas" }, this.canvas),
      this.readout,
      this.dropped,
      cmbench.element(
        "details",
        {},
        cmbench.element("summary", {}, "The chart's data as a table"),
        cmbench.element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Data: ${name}` }, this.table),
      ),
    );
    this.at = -1;
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.walk(-1));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.view && this.show(this.view));
    addEventListener("beforeprint", () => this.chart && this.chart.resize());
    addEventListener("afterprint", () => this.chart && this.chart.resize());
  }

  // view: {series: [{name, look, line, band, hollow, points: [{x, y, low, high, text, lines, tag, id}]}], front: [{x, y}],
  //        x: {title, log}, y: {title, better, log}, dropped}
  show(view) {
    this.view = view;
    const positive = (axis) => (point) => !view[axis].log || point[axis] > 0;
    const series = view.series.map((one) => ({
      ...one,
      points: one.points.filter(positive("x")).filter(positive("y")),
    })).filter((one) => one.points.length);
    const all = view.series.reduce((sum, one) => sum + one.points.length, 0);
    this.points = series.flatMap((one, set) => one.points.map((point, at) => ({ ...point, name: one.name, set, at })))
      .sort((a, b) => a.x - b.x || a.y - b.y);
    const lost = all - this.points.length;
    this.dropped.textContent = [view.dropped, lost ? `Not on logarithmic axes: ${lost} at zero.` : ""].filter(Boolean).join(" ");
    const sets = series.map((one) => this.dataset(one));
    if (view.front && view.front.length > 1) {
      sets.push({
        data: view.front, borderColor: cmbench.colour("--soft"), borderDash: [4, 4], borderWidth: 1.2, pointRadius: 0,
        pointHitRadius: 0, pointHoverRadius: 0, showLine: true, stepped: "before", order: 9, front: true,
      });
    }
    const options = this.options(view);
    if (this.chart) {
      this.chart.data.datasets = sets;
      this.chart.options = options;
      this.chart.update("none");
    } else {
      this.chart = new Chart(this.canvas, { type: "scatter", data: { datasets: sets }, options, plugins: [cmbench.whiskers] });
    }
    this.canvas.setAttribute("aria-label", `${this.name}: ${view.y.title} against ${view.x.title}, ${this.points.length} points. Arrow keys walk along the points; the data stand in a table below.`);
    this.walk(-1);
    this.tabulate(view);
  }

  dataset({ look, line, band, hollow, points }) {
    const colour = cmbench.drawn(look.colour);
    const open = look.marker.startsWith("cross");
    return {
      data: points,
      borderColor: colour,
      backgroundColor: hollow ? cmbench.colour("--paper") : colour,
      pointStyle: look.marker === "down" ? "triangle" : look.marker,
      pointRotation: look.marker === "down" ? 180 : 0,
      pointRadius: points.length > 30 ? 2.5 : 5,
      pointBorderWidth: open ? 2.4 : hollow ? 1.6 : 1,
      pointHoverRadius: 8,
      pointHoverBorderWidth: open ? 3 : 2,
      showLine: line,
      borderWidth: 1.6,
      borderDash: look.dash,
      band,
    };
  }

  // The room that the points take, with some around them: marks do not sit on the axes.
  span(axis, log) {
    const values = this.points.flatMap((point) => (axis === "x" ? [point.x] : [point.low, point.y, point.high]));
    if (values.length) values.push(...(this.view.front || []).map((point) => point[axis]).filter((value) => !log || value > 0));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (!values.length) return {};
    if (!log) {
      const room = (high - low || Math.abs(high) || 1) * 0.05;
      return { min: low >= 0 && low < room ? 0 : low - room, max: high + room };
    }
    const room = Math.max(1.06, (high / low) ** 0.04);
    return { min: (low > 0 ? low : Math.min(...values.filter((value) => value > 0))) / room, max: high * room };
  }

  axis({ title, better, log }, span) {
    const which = better ? ` (${better} is better)` : "";
    const ink = cmbench.colour("--soft");
    const wide = this.canvas.parentElement.clientWidth > 560;
    const shown = (value) => {
      if (!log) return cmbench.plain(value);
      const lead = Number(value.toExponential().split("e")[0]);
      const decades = Math.log10(span.max / span.min);
      const leads = decades > (wide ? 3.6 : 2.6) ? [1] : decades > 0.7 ? [1, 2, 5] : [1, 2, 3, 4, 5, 6, 7, 8, 9];
      return leads.includes(lead) ? cmbench.plain(value) : "";
    };
    return {
      type: log ? "logarithmic" : "linear",
      title: { display: true, text: title + which, color: cmbench.colour("--ink") },
      grid: { color: (context) => (!log || !context.tick || context.tick.label ? cmbench.colour("--line") : "transparent"), drawTicks: false },
      border: { color: cmbench.colour("--soft") },
      ticks: { color: ink, callback: shown, autoSkip: !log, includeBounds: false, maxRotation: 0, padding: 6 },
      ...span,
    };
  }

  options(view) {
    return {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "nearest", intersect: false, axis: "xy" },
      layout: { padding: { top: 14, right: 14 } },
      scales: { x: this.axis(view.x, this.span("x", view.x.log)), y: this.axis(view.y, this.span("y", view.y.log)) },
      onHover: (event, active) => this.hovered(active),
      onClick: (event, active) => this.clicked(active),
      plugins: {
        legend: { display: false },
        tooltip: {
          enabled: this.canvas.parentElement.clientWidth > 560, // what it says stands below the chart as well
          backgroundColor: cmbench.colour("--paper"),
          bodyColor: cmbench.colour("--ink"),
          borderColor: cmbench.colour("--soft"),
          borderWidth: 1,
          caretSize: 0,
          caretPadding: 10,
          filter: ({ dataset }) => !dataset.front,
          displayColors: false,
          padding: 9,
          callbacks: {
            title: () => "",
            label: ({ raw, datasetIndex }) => this.tip(raw, datasetIndex),
          },
        },
      },
    };
  }

  // Tooltips do not wrap: lines are cut where the chart is narrower than they are.
  tip(point) {
    const room = Math.max(24, Math.floor(this.chart.width / 8.5));
    return [point.name, point.text, ...point.lines].map((line) => (line.length > room ? `${line.slice(0, room - 1)}…` : line));
  }

  read(point) {
    if (!point) {
      this.readout.replaceChildren(this.hint);
      return;
    }
    const parts = [cmbench.element("strong", {}, point.name), cmbench.element("span", {}, point.text)];
    for (const line of point.lines) parts.push(cmbench.element("span", {}, line));
    if (point.id && this.onopen) {
      parts.push(cmbench.element("a", { href: `#${point.id}`, onclick: (event) => { event.preventDefault(); this.onopen(point); } }, "show the row"));
    }
    this.readout.replaceChildren(...parts);
  }

  hovered(active) {
    const set = active.length && this.chart.data.datasets[active[0].datasetIndex];
    if (set && !set.front && document.activeElement !== this.canvas) this.read(set.data[active[0].index]);
  }

  clicked(active) {
    const set = active.length && this.chart.data.datasets[active[0].datasetIndex];
    if (!set || set.front) return;
    const point = set.data[active[0].index];
    this.walk(this.points.findIndex((one) => one.set === active[0].datasetIndex && one.at === active[0].index));
    this.read(point);
  }

  key(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };
    const last = this.points.length - 1;
    let to;
    if (event.key in steps) to = Math.min(last, Math.max(0, this.at + steps[event.key]));
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = last;
    else if (event.key === "Escape") to = -1;
    else if (event.key === "Enter" && this.at >= 0 && this.onopen && this.points[this.at].id) {
      this.onopen(this.points[this.at]);
      event.preventDefault();
      return;
    } else return;
    event.preventDefault();
    this.walk(to);
  }

  // Mark the n-th point, by x; -1 marks none.
  walk(to) {
    if (!this.chart) return;
    const had = this.at;
    this.at = to;
    const point = this.points[to];
    const active = point ? [{ datasetIndex: point.set, index: point.at }] : [];
    const where = point ? this.chart.getDatasetMeta(point.set).data[point.at] : { x: 0, y: 0 };
    this.chart.setActiveElements(active);
    this.chart.tooltip.setActiveElements(active, { x: where.x, y: where.y });
    this.chart.update("none");
    if (point || had >= 0) this.read(point);
  }

  tabulate(view) {
    const head = ["", view.x.title, view.y.title, "least seed", "greatest seed"].map((text) => cmbench.element("th", { scope: "col" }, text));
    const body = this.points.map((point) => {
      const numbers = [cmbench.plain(point.x), point.value, cmbench.plain(point.low), cmbench.plain(point.high)];
      return cmbench.element("tr", {}, cmbench.element("th", { scope: "row" }, point.name), ...numbers.map((text) => cmbench.element("td", { className: "number" }, text)));
    });
    this.table.replaceChildren(cmbench.element("thead", {}, cmbench.element("tr", {}, ...head)), cmbench.element("tbody", {}, ...body));
  }
};

Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
Chart.defaults.font.size = 12;
