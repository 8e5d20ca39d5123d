"use strict";
// Zero-shot editing: the figures of merit of one task over evaluations, consistency models beside diffusion.
(() => {
  const { element } = cmbench;
  cmbench.editing = [];

  for (const section of document.querySelectorAll(".editing")) {
    const one = cmbench.data.editing[Number(section.dataset.place)];
    const which = () => one.metrics.find(({ id }) => id === metric.field.value) || { title: "", better: null };
    const task = cmbench.select("Task", one.tasks.map(({ id, title }) => [id, title]), () => draw());
    const metric = cmbench.select("Quality", one.metrics.map(({ id, title }) => [id, title]), () => {
      logY.field.checked = metric.field.value === "frechet";
      draw();
    });
    const logX = cmbench.check("log x", true, () => draw());
    const logY = cmbench.check("log y", false, () => draw());
    logY.field.checked = metric.field.value === "frechet";
    const plot = new cmbench.Plot(section.querySelector(".plot"), `Editing: ${one.title}`);
    const arms = one.arms.map((arm, place) => {
      const look = cmbench.look(place);
      return { ...arm, look, box: cmbench.check(arm.label, true, () => draw(), cmbench.swatch(look)) };
    });
    const legend = element("fieldset", {}, element("legend", { className: "unseen" }, "Methods"), ...arms.map((arm) => arm.box.label));
    section.querySelector(".controls").append(task.label, metric.label, logX.label, logY.label, legend);

    // The best of what needs no network; of the distance to the data set, also what the originals themselves have.
    function without(better) {
      const there = one.still[task.field.value].filter(({ metrics }) => metrics[metric.field.value]);
      const sign = better === "higher" ? -1 : 1;
      const of = ({ metrics }) => metrics[metric.field.value];
      const best = there.filter(({ truth }) => !truth).sort((a, b) => sign * (of(a).mean - of(b).mean))[0];
      const said = [best && `Dashed, without a network: ${best.label}, ${of(best).text}.`];
      for (const truth of there.filter((still) => still.truth)) said.push(`The originals have ${of(truth).text}.`);
      return { value: best && of(best).mean, text: said.filter(Boolean).join(" ") };
    }

    function draw() {
      const { title, better } = which();
      const { setting } = one.tasks.find(({ id }) => id === task.field.value) || { setting: "" };
      const series = arms.filter((arm) => arm.box.field.checked).map((arm) => ({
        name: arm.label, look: arm.look, line: true, band: true,
        points: arm.points[task.field.value].filter((point) => point.metrics[metric.field.value]).map((point) => {
          const figure = point.metrics[metric.field.value];
          return { x: point.x, y: figure.mean, low: figure.low, high: figure.high, name: arm.label, value: figure.text, text: `${title} ${figure.text} at NFE ${cmbench.plain(point.x)}`, lines: [...point.from, setting, ...one.from] };
        }),
      }));
      const { value, text } = without(better);
      const xs = series.flatMap(({ points }) => points.map(({ x }) => x));
      const front = value === undefined || !xs.length ? [] : [Math.min(...xs), Math.max(...xs)].map((x) => ({ x, y: value }));
      plot.show({
        series, front, dropped: text,
        x: { title: "network evaluations an image (NFE)", log: logX.field.checked }, y: { title, better, log: logY.field.checked },
      });
    }
    if (one.tasks.length && one.metrics.length) draw();
    cmbench.editing.push(plot);
  }
})();
