"use strict";
// The curves of each experiment, from its manifest.
(() => {
  const { element } = cmbench;
  const TITLES = { step: "training steps", nfe: "network evaluations a sample (NFE)" };
  cmbench.experiments = [];

  for (const section of document.querySelectorAll(".experiment")) {
    const one = cmbench.data.experiments[Number(section.dataset.place)];
    const which = () => one.metrics.find(({ id }) => id === metric.field.value) || { title: "", better: null };
    const metric = cmbench.select("Quality", one.metrics.map(({ id, title }) => [id, title]), () => {
      logY.field.checked = which().better !== "higher";
      draw();
    });
    const logX = cmbench.check("log x", one.x === "nfe", () => draw());
    const logY = cmbench.check("log y", which().better !== "higher", () => draw());
    const plot = new cmbench.Plot(section.querySelector(".plot"), one.title, (point) => cmbench.open(point.id));
    const arms = one.arms.map((arm, place) => {
      const look = cmbench.look(place);
      const box = cmbench.check(arm.label, true, () => draw(), cmbench.swatch(look));
      box.label.title = [arm.note, ...arm.settings].filter(Boolean).join("; ");
      return { ...arm, look, box };
    });
    const legend = element("fieldset", {}, element("legend", { className: "unseen" }, "Curves"), ...arms.map((arm) => arm.box.label));
    section.querySelector(".controls").append(metric.label, logX.label, logY.label, legend);

    const told = arms.filter((arm) => arm.note || arm.settings.length);
    if (told.length || one.setup.length) {
      const items = told.map((arm) => element("li", {}, element("strong", {}, arm.label), ` ${[arm.method, ...arm.settings, arm.note].filter(Boolean).join("; ")}`));
      if (one.setup.length) items.unshift(element("li", {}, `all: ${one.setup.join("; ")}`));
      section.append(element("details", {}, element("summary", {}, "What the curves are"), element("ul", { className: "notes" }, ...items)));
    }

    function draw() {
      const { title, better } = which();
      const series = arms.filter((arm) => arm.box.field.checked).map((arm) => ({
        name: arm.label, look: arm.look, line: true, band: true,
        points: arm.points.filter((point) => point.metrics[metric.field.value]).map((point) => {
          const figure = point.metrics[metric.field.value];
          const where = one.x === "step" ? `step ${cmbench.plain(point.x)}` : `NFE ${cmbench.plain(point.x)}`;
          const id = document.getElementById(point.id) ? point.id : null; // milestones have no row in the tables
          return { id, x: point.x, y: figure.mean, low: figure.low, high: figure.high, name: arm.label, value: figure.text, text: `${title} ${figure.text} at ${where}`, lines: point.from };
        }),
      }));
      plot.show({ series, x: { title: TITLES[one.x], log: logX.field.checked }, y: { title, better, log: logY.field.checked } });
    }
    draw();
    cmbench.experiments.push(plot);
  }
})();
