"use strict";
document.documentElement.classList.add("js");

const natural = new Intl.Collator("en", { numeric: true });
const say = (text) => { document.getElementById("said").textContent = text; };
const rowsOf = (body) => [...body.rows].filter((row) => row.classList.contains("row"));

/* Sort each body of a table by a column; rows without a number come last, whichever way. */
function sort(table, head) {
  const rising = head.getAttribute("aria-sort")
    ? head.getAttribute("aria-sort") === "descending"
    : !head.dataset.kind.includes("falling");
  const words = head.dataset.kind === "text";
  const value = (row) => {
    const cell = row.cells[head.cellIndex];
    return words ? cell.textContent.trim() : cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    const [one, other] = [value(a), value(b)];
    if (one === null || other === null) return (one === null) - (other === null);
    return (rising ? 1 : -1) * (words ? natural.compare(one, other) : one - other);
  };
  for (const body of table.tBodies) body.append(...rowsOf(body).sort(compare));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  say(`sorted by ${head.textContent.trim()}, ${rising ? "ascending" : "descending"}`);
}

/* Show the rows whose method or data access has the words, and the controls if they are asked for. */
function filter(tools, table) {
  const words = tools.querySelector("input[type=search]").value.toLowerCase().split(/\s+/);
  const controls = tools.querySelector(".controls").checked;
  let shown = 0, all = 0;
  for (const body of table.tBodies) {
    const allowed = controls || !body.classList.contains("controls");
    const others = tools.closest(".part").querySelector(".settings input");
    let some = false;
    for (const row of rowsOf(body)) {
      if (others && !others.checked && row.classList.contains("apart")) continue;
      const text = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase();
      row.hidden = !(allowed && words.every((word) => text.includes(word)));
      some ||= !row.hidden;
      shown += !row.hidden;
      all += 1;
    }
    body.hidden = !some;
  }
  tools.querySelector(".count").textContent = `${shown} of ${all} methods shown`;
}

/* Show one table, that of a section; all are shown where scripts do not run. */
function choose(part) {
  for (const other of document.querySelectorAll(".sheet")) other.classList.toggle("chosen", other === part);
  for (const link of document.querySelectorAll(".choice")) {
    if (part.querySelector("h2").id !== link.hash.slice(1)) {
      link.removeAttribute("aria-current");
      continue;
    }
    link.setAttribute("aria-current", "true");
    const row = link.closest("nav");
    const [left, right] = [link.getBoundingClientRect().left - 16, link.getBoundingClientRect().right + 16 - innerWidth];
    row.scrollLeft += left < 0 ? left : Math.max(0, right);
  }
}

/* Open what an address names, and everything around it. */
function reveal(id) {
  const target = id && document.getElementById(id);
  if (!target) return;
  const part = target.closest(".sheet");
  if (part) choose(part);
  if (target.matches(".sheet h2")) {
    target.focus({ preventScroll: true });
    scrollTo(0, 0);
    return;
  }
  for (let node = target; node; node = node.parentElement) if (node.matches("details")) node.open = true;
  const place = target.querySelector("summary") || target;
  place.focus({ preventScroll: true });
  target.scrollIntoView({ block: "start" });
}

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  let done = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "copied" : "selected";
  say(done ? "copied" : "selected: copy it with the keyboard");
  setTimeout(() => { button.textContent = "copy"; }, 2000);
}

/* Mark the point of a row that is pointed at. */
function point(event) {
  const row = event.target.closest && event.target.closest("tr[data-point]");
  for (const old of document.querySelectorAll(".pointed")) old.classList.remove("pointed");
  const mark = row && document.getElementById(row.dataset.point);
  if (mark) mark.classList.add("pointed");
}

addEventListener("DOMContentLoaded", () => {
  choose(document.querySelector(".sheet"));
  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th");
      if (head && event.target.closest("button")) sort(table, head);
    });
    table.addEventListener("mouseover", point);
    table.addEventListener("focusin", point);
    table.addEventListener("mouseleave", point);
  }
  for (const tools of document.querySelectorAll(".tools")) {
    const table = document.getElementById(tools.dataset.table);
    tools.addEventListener("input", (event) => {
      const name = event.target.dataset.toggle;
      if (name) table.classList.toggle(name, event.target.checked);
      else filter(tools, table);
    });
    for (const box of tools.querySelectorAll("[data-toggle]")) table.classList.toggle(box.dataset.toggle, box.checked);
    const others = tools.closest(".part").querySelector(".settings input");
    if (others) others.addEventListener("input", () => filter(tools, table));
    filter(tools, table);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button);
    const link = event.target.closest("a[href^='#']");
    if (link) setTimeout(() => reveal(link.hash.slice(1)));
  });
  addEventListener("hashchange", () => reveal(location.hash.slice(1)));
  reveal(location.hash.slice(1));
});
