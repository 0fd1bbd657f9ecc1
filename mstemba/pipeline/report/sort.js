"use strict";
// A click on a heading sorts its table by that column; another click reverses the order.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("num");
    // Numbers begin with the highest, names with the first.
    const firstOrder = numeric ? "descending" : "ascending";
    const secondOrder = numeric ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === firstOrder ? secondOrder : firstOrder;
    const sign = order === "ascending" ? 1 : -1;
    const cellValue = (row) => {
      const cell = row.cells[heading.cellIndex];
      return numeric ? parseFloat(cell.dataset.value) : cell.textContent.trim();
    };
    const compareRows = (rowA, rowB) => {
      const [a, b] = [cellValue(rowA), cellValue(rowB)];
      if (!numeric) return sign * a.localeCompare(b);
      // Missing numbers come last in either order.
      return isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b);
    };
    body.append(...[...body.rows].sort(compareRows));
    for (const cell of heading.parentElement.cells) cell.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
  });
}
