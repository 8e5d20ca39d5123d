"use strict";
// Samples of every method, the same seeds in the same places, at the number of evaluations that a slider sets.
(() => {
  const grid = document.getElementById("samples-grid");
  const { element } = cmbench;
  const sets = cmbench.data.datasets.filter((one) => one.samples.length);
  if (!grid || !sets.length) return;
  let data = [...sets].sort((a, b) => b.samples.length - a.samples.length)[0];
  let steps = [];

  const dataset = cmbench.select("Data set", sets.map((one) => [one.name, one.title]), () => choose());
  const slider = element("input", { type: "range", min: 0, step: 1, value: 0, id: "samples-nfe", oninput: () => draw() });
  const shown = element("output", { for: "samples-nfe" });
  const mode = cmbench.select("Show", [["budget", "each method at its most evaluations up to this"], ["exact", "methods run at exactly this many"]], () => draw());
  const seed = cmbench.select("Seed", [], () => draw(), "");
  const count = cmbench.select("Samples", [8, 16, 32, 64].filter((n) => n <= Math.max(8, cmbench.data.pictureSamples)).map((n) => [n, n]), () => draw(), "");
  const groups = element("fieldset", {});
  mode.field.id = "samples-mode";
  document.getElementById("samples-controls").append(
    dataset.label, element("label", { className: "slider", for: "samples-nfe" }, "Evaluations", slider, shown), seed.label, count.label, mode.label, groups,
  );
  dataset.label.hidden = sets.length < 2;
  dataset.field.value = data.name;
  dataset.field.disabled = sets.length < 2;
  count.field.value = "16";

  function choose() {
    data = sets.find((one) => one.name === dataset.field.value);
    steps = [...new Set(data.samples.map((one) => one.nfe))].sort((a, b) => a - b);
    slider.max = steps.length - 1;
    slider.value = 0;
    const seeds = [...new Set(data.samples.flatMap((one) => Object.keys(one.keys)))].sort((a, b) => a - b);
    seed.field.replaceChildren(...seeds.map((value) => element("option", { value }, value)));
    const names = [...new Set(data.samples.map((one) => one.group))];
    const boxes = names.map((name) => cmbench.check(name || "no group", true, () => draw()));
    boxes.forEach(({ field }, place) => { field.value = names[place]; });
    groups.replaceChildren(element("legend", { className: "unseen" }, "Groups"), ...boxes.map(({ label }) => label));
    draw();
  }

  function draw() {
    const nfe = steps[slider.value];
    const exact = mode.field.value === "exact";
    shown.textContent = exact ? `${nfe}` : `≤ ${nfe}`;
    slider.setAttribute("aria-valuetext", `${exact ? "exactly" : "up to"} ${nfe} evaluations`);
    const wanted = new Set([...groups.querySelectorAll("input")].filter((box) => box.checked).map((box) => box.value));
    const blocks = [];
    let later = 0;
    for (const group of wanted) {
      const methods = new Map();
      for (const one of data.samples) {
        if (one.group !== group || !(seed.field.value in one.keys)) continue;
        if (!methods.has(one.line)) methods.set(one.line, []);
        methods.get(one.line).push(one);
      }
      const found = [];
      for (const [line, own] of methods) {
        const fit = own.filter((one) => (exact ? one.nfe === nfe : one.nfe <= nfe)).sort((a, b) => b.nfe - a.nfe)[0];
        if (fit) found.push(sheet(line, fit));
        else later += 1;
      }
      if (found.length) blocks.push(element("h3", {}, group || "no group"), element("div", { className: "sheets" }, ...found));
    }
    const times = `${nfe} evaluation${nfe === 1 ? "" : "s"}`;
    const why = exact ? `not run at ${times}` : `run at more than ${times} only`;
    if (later) blocks.push(element("p", { className: "waiting" }, `Not shown: ${later} method${later === 1 ? "" : "s"} ${why}.`));
    grid.replaceChildren(...blocks);
  }

  // The first samples of a picture of eight columns: its top rows.
  function sheet(line, one) {
    const rows = Math.ceil(Math.min(Number(count.field.value), one.count) / 8);
    const last = Math.min(rows * 8, one.count) - 1;
    const image = element("img", { src: cmbench.data.pictures[one.keys[seed.field.value]], alt: `Samples 0 to ${last} of ${line}, NFE ${one.nfe}, seed ${seed.field.value}` });
    const crop = element("div", { className: "crop" }, image);
    crop.style.aspectRatio = `8 / ${rows}`;
    crop.style.setProperty("--tile", `${100 / rows}%`);
    const link = element("a", { href: `#${one.id}`, onclick: (event) => { event.preventDefault(); cmbench.open(one.id); } }, line);
    return element("figure", {}, element("figcaption", {}, link, element("span", {}, `NFE ${one.nfe}`)), crop);
  }

  choose();
})();
