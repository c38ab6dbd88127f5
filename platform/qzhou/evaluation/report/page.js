"use strict";

const SETTINGS = {
  displaylogo: false,
  displayModeBar: "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // none of those that send data anywhere
  responsive: true,
};
const GRID = "rgba(128, 138, 150, 0.25)"; // readable on both backgrounds
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

function look() {
  const page = getComputedStyle(document.body);
  const axis = { color: page.color, gridcolor: GRID, zerolinecolor: GRID, exponentformat: "none", separatethousands: true };
  const modebar = { bgcolor: "transparent", color: GRID, activecolor: page.color };
  const hover = { bgcolor: page.backgroundColor, bordercolor: GRID, font: { color: page.color }, namelength: -1 };
  return { axis, font: { color: page.color, family: page.fontFamily, size: 12 }, hoverlabel: hover, modebar };
}

function draw(place) {
  waiting.unobserve(place);
  const { axis, ...style } = look();
  const { data, layout } = JSON.parse(place.querySelector("script").textContent);
  for (const whiskers of data.map((trace) => trace.error_x)) if (whiskers) whiskers.color = axis.color;
  place.replaceChildren();
  place.dataset.drawn = "";
  Plotly.newPlot(place, data, {
    ...layout,
    ...style,
    showlegend: false,
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    margin: { l: 50, r: 12, t: 8, b: 42 },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, automargin: true, ...layout.yaxis },
  }, SETTINGS);
}

function repaint() {
  const { axis, ...change } = look();
  for (const name of ["xaxis", "yaxis"]) change[`${name}.color`] = axis.color;
  for (const place of document.querySelectorAll(".plot[data-drawn]")) {
    Plotly.update(place, place.data.some((trace) => trace.error_x) ? { "error_x.color": axis.color } : {}, change);
  }
}

const waiting = new IntersectionObserver((seen) => {
  for (const one of seen) if (one.isIntersecting) draw(one.target);
}, { rootMargin: "800px" });
document.querySelectorAll(".plot").forEach((place) => waiting.observe(place));
addEventListener("beforeprint", () => document.querySelectorAll(".plot:not([data-drawn])").forEach(draw));

document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  repaint();
});
dark.addEventListener("change", repaint);

for (const keys of document.querySelectorAll(".keys")) {
  [...keys.children].forEach((key, number) => key.addEventListener("click", () => {
    const place = keys.parentElement.querySelector(".plot");
    const hidden = key.getAttribute("aria-pressed") === "true";
    key.setAttribute("aria-pressed", String(!hidden));
    Plotly.restyle(place, { visible: !hidden }, [number]);
  }));
}

function compare(one, other) {
  const numbers = [Number(one), Number(other)];
  return numbers.some(Number.isNaN) ? one.localeCompare(other) : numbers[0] - numbers[1];
}

function sort(heading) {
  const row = heading.parentElement, place = [...row.children].indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const first = heading.classList.contains("number") ? "descending" : "ascending";
  const second = first === "descending" ? "ascending" : "descending";
  const order = heading.ariaSort === first ? second : first;
  const key = (line) => line.children[place].dataset.sort;
  const sign = order === "ascending" ? 1 : -1;
  const lines = [...body.rows].sort((one, other) => {
    if (!key(one) || !key(other)) return Number(!key(one)) - Number(!key(other)); // what is missing stands last
    return sign * compare(key(one), key(other));
  });
  for (const other of row.children) other.ariaSort = "none";
  heading.ariaSort = order;
  body.append(...lines);
}
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));
