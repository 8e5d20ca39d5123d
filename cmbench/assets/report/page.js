"use strict";
// The tables: rows that open, and a search. `cmbench.open` is called by the charts, long after this has run.
(() => {
  function toggle(button, to) {
    button.setAttribute("aria-expanded", to);
    document.getElementById(button.getAttribute("aria-controls")).classList.toggle("opened", to);
  }

  for (const button of document.querySelectorAll("button.open")) {
    button.addEventListener("click", () => toggle(button, button.getAttribute("aria-expanded") !== "true"));
  }

  // Open a row's provenance and go there.
  cmbench.open = (id) => {
    const row = document.getElementById(id);
    if (!row) return;
    for (const other of document.querySelectorAll(".row.target")) other.classList.remove("target");
    row.classList.add("target");
    row.closest("tbody").hidden = false;
    row.hidden = false;
    const more = document.getElementById(`more-${id}`);
    more.hidden = false;
    const button = row.querySelector("button.open");
    toggle(button, true);
    button.focus({ preventScroll: true });
    row.scrollIntoView({ block: "center" });
  };

  for (const link of document.querySelectorAll(".best a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      cmbench.open(link.hash.slice(1));
    });
  }

  for (const field of document.querySelectorAll("input.find")) {
    const table = document.getElementById(field.dataset.table);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const body of table.tBodies) {
        const section = body.rows[0].textContent.toLowerCase();
        for (const row of body.querySelectorAll(".row")) {
          const text = `${section} ${row.textContent.toLowerCase()}`;
          row.hidden = !words.every((word) => text.includes(word));
          if (row.nextElementSibling && row.nextElementSibling.classList.contains("more")) row.nextElementSibling.hidden = row.hidden;
          count += !row.hidden;
        }
        body.hidden = ![...body.querySelectorAll(".row")].some((row) => !row.hidden);
      }
      field.closest(".controls").querySelector(".found").textContent = words.length ? `${count} rows` : "";
    });
  }

  if (location.hash.startsWith("#row-")) cmbench.open(location.hash.slice(1));
})();
