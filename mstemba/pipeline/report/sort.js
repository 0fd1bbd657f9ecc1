"use strict";
// A click on a heading sorts its table by that column, another one turns the order round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("num");
    // Numbers begin with the highest, names with the first.
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => {
      const cell = row.cells[heading.cellIndex];
      return numeric ? parseFloat(cell.dataset.value) : cell.textContent.trim();
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!numeric) return sign * x.localeCompare(y);
      // What is not known comes last in either order.
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
    };
    body.append(...[...body.rows].sort(compare));
    for (const one of heading.parentElement.cells) one.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
  });
}
