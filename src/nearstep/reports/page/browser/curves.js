// The curves of a run in three groups. One cursor and one zoom for all of them; a click chooses the update.

const curvePlots = []; // every chart that is drawn: { card, chart, plot, sources, cursor }
let hovered = null; // the update under the pointer
let zoomed = null; // [start, end] of the updates that are shown, or null for all

function renderCurves() {
  const { train, groups } = data.curves;
  curvePlots.length = 0;
  const many = train.each > 1
    ? `Each point is the mean of ${train.each} of ${train.lines.toLocaleString("en")} logged updates; the shade goes from their lowest to their highest. `
    : "";
  fill($("curves-note"), train.first.length
    ? many + "Point to read, click to choose an update, drag to zoom, double-click for all. The shaded band is where healthy runs are."
    : "");
  fill($("groups"), groups.filter((group) => group.charts.length + group.more.length).map((group) => [
    make("h3", {}, group.title),
    make("div", { className: "charts" }, group.charts.map(chartCard)),
    group.more.length === 0 ? null : make("details", { className: "more", ontoggle: openMore },
      make("summary", {}, `${group.more.length} more: ${group.more.map((chart) => chart.names[0]).join(", ")}`),
      make("div", { className: "charts", "data-more": group.title })),
  ]));
}

function openMore(event) {
  const place = event.target.querySelector("[data-more]");
  if (!event.target.open || place.childElementCount) return;
  const group = data.curves.groups.find((each) => each.title === place.dataset.more);
  fill(place, group.more.map(chartCard));
  renderReadings();
}

/** Title, reading at the cursor, the chart, and what it says. */
function chartCard(chart) {
  const reading = make("p", { className: "reading" });
  const area = make("div", { className: "plot", role: "img", "aria-label": chartInWords(chart) });
  const card = make("figure", { className: "card" },
    make("figcaption", {}, make("h4", {}, chart.title), reading),
    area,
    make("p", { className: "meaning" }, healthyWords(chart.healthy), meaningOf(chart.names[0])),
    chart.names.length < 2 ? null : make("details", { className: "meaning" }, make("summary", {}, "The other lines"),
      make("dl", {}, chart.names.slice(1).map((name) => [make("dt", {}, name), make("dd", {}, meaningOf(name))]))));
  const entry = { chart, card, area, reading, plot: null, sources: [], cursor: null };
  curvePlots.push(entry);
  drawLater(area, () => drawCurve(entry));
  return card;
}

function meaningOf(name) {
  const says = data.curves.meanings[name] ?? data.curves.meanings["eval/" + name];
  return says[0].toUpperCase() + says.slice(1);
}

function healthyWords(healthy) {
  if (!healthy) return null;
  const [low, high] = healthy;
  const words = low === null ? `below ${short(high)}` : high === null ? `above ${short(low)}` : `${short(low)} to ${short(high)}`;
  return make("span", { className: "healthy" }, `Healthy: ${words}. `);
}

function chartInWords(chart) {
  const of = (name) => {
    const numbers = (data.curves.train.mean[name] ?? data.curves.eval.mean["eval/" + name] ?? []).filter((each) => each !== null);
    return `${name} from ${short(numbers[0])} to ${short(lastOf(numbers))}`;
  };
  return `${chart.title} over updates: ${chart.names.map(of).join("; ")}`;
}

/** The lines of a chart: columns of numbers with their updates, those of training before those of evaluations. */
function linesOf(chart) {
  const { train, eval: evals } = data.curves;
  const trained = chart.names.filter((name) => name in train.mean).map((name) => ({
    name, index: chart.names.indexOf(name), x: train.last, y: train.mean[name], low: train.low?.[name], high: train.high?.[name],
  }));
  const evaluated = chart.names.filter((name) => "eval/" + name in evals.mean).map((name) => ({
    name: "eval/" + name, index: chart.names.indexOf(name), x: evals.last, y: evals.mean["eval/" + name], isEvaluation: true,
  }));
  return chart.stacked ? stack(trained) : [...trained, ...evaluated];
}

/** Shares of one whole, each on top of those before it. */
function stack(lines) {
  let below = lines[0]?.y.map(() => 0) ?? [];
  return lines.map((line) => {
    const above = line.y.map((share, index) => below[index] + (share ?? 0));
    const stacked = { ...line, shown: line.y, y: above, low: below, high: above, filled: true };
    below = above;
    return stacked;
  });
}

function shownRange() {
  const { first, last } = data.curves.eval; // an evaluation may come before the first update
  return zoomed ?? [Math.min(firstUpdate(), first[0] ?? Infinity) - 0.5, Math.max(lastUpdate(), lastOf(last) ?? 0) + 0.5];
}

function heights(chart, lines) {
  if (chart.stacked) return [0, 1];
  const [start, end] = shownRange();
  const inside = lines.flatMap((line) => [line.y, line.low ?? [], line.high ?? []].flatMap((column) =>
    column.filter((_, index) => line.x[index] >= start && line.x[index] <= end)));
  return span(inside);
}

async function drawCurve(entry) {
  const { chart, area } = entry;
  const lines = linesOf(chart);
  const made = figure({ x: shownRange(), y: heights(chart, lines), zoom: true });
  const [bottom, top] = chart.healthy ?? [];
  const band = chart.healthy && new Bokeh.BoxAnnotation({
    ...(bottom === null ? {} : { bottom }), ...(top === null ? {} : { top }), level: "underlay", line_color: null, fill_alpha: 1,
  });
  if (band) made.add_layout(band);
  entry.sources = lines.map(sourceOf);
  const glyphs = lines.map((line, index) => drawLine(made, line, entry.sources[index], lines.length));
  made.on_event("mousemove", (event) => point(event.x));
  made.on_event("mouseleave", () => point(null));
  made.on_event("tap", (event) => choose({ update: nearestUpdate(event.x) }));
  made.on_event("doubletap", () => zoom(null));
  made.on_event("rangesupdate", (event) => {
    if (!entry.follows && event.x0 !== undefined) zoom([event.x0, event.x1]);
  });
  entry.plot = await show(area, made, () => {
    if (band) band.fill_color = colour("--band");
    glyphs.forEach((paint, index) => paint(lineColour(lines[index].index)));
  });
  entry.cursor = make("div", { className: "cursor" });
  area.append(entry.cursor);
  placeCursor(entry);
}

function sourceOf(line) {
  const columns = { x: line.x, y: gaps(line.y) };
  if (line.low) Object.assign(columns, { low: gaps(line.low), high: gaps(line.high) });
  return new Bokeh.ColumnDataSource({ data: columns });
}

/** Draw a line, and return how it gets its colour. */
function drawLine(made, line, source, count) {
  const shade = line.low && made.varea({ field: "x" }, { field: "low" }, { field: "high" }, { source });
  const stroke = line.filled ? null : made.line({ field: "x" }, { field: "y" }, { source, line_width: count > 3 ? 1.25 : 1.75 });
  const dots = (line.isEvaluation && line.x.length <= 60) || line.x.length < 2 ? made.scatter({ field: "x" }, { field: "y" }, { source, size: 5 }) : null;
  if (line.isEvaluation && stroke) stroke.glyph.line_dash = [4, 3];
  return (name) => {
    const painted = colour(name);
    if (shade) Object.assign(shade.glyph, { fill_color: painted, fill_alpha: line.filled ? 0.8 : 0.18 });
    if (stroke) stroke.glyph.line_color = painted;
    if (dots) Object.assign(dots.glyph, { fill_color: painted, line_color: painted });
  };
}

/** New numbers in charts that are there: a run that goes on. */
function updateCurves() {
  for (const entry of curvePlots) {
    entry.area.setAttribute("aria-label", chartInWords(entry.chart));
    if (!entry.plot) continue;
    const lines = linesOf(entry.chart);
    if (lines.length !== entry.sources.length) {
      drawCurve(entry);
      continue;
    }
    lines.forEach((line, index) => { entry.sources[index].data = sourceOf(line).data; });
  }
  fitCurves();
}

function fitCurves() {
  for (const entry of curvePlots) {
    if (!entry.plot) continue;
    entry.follows = true;
    const [start, end] = shownRange();
    entry.plot.figure.x_range.setv({ start, end });
    const [low, high] = heights(entry.chart, linesOf(entry.chart));
    entry.plot.figure.y_range.setv({ start: low, end: high });
    entry.follows = false;
  }
  requestAnimationFrame(placeCursors);
}

let asked = null;
function zoom(between) {
  const [start, end] = between ?? [0, 0];
  if (between && zoomed && Math.abs(zoomed[0] - start) < 1e-6 && Math.abs(zoomed[1] - end) < 1e-6) return;
  if (!between && !zoomed) return;
  zoomed = between;
  clearTimeout(asked);
  asked = setTimeout(fitCurves, 20);
}

/** The logged update that is nearest to a place on the axis. */
function nearestUpdate(x) {
  const updates = data.curves.train.last;
  let low = 0, high = updates.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (updates[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - updates[low - 1] < updates[low] - x ? updates[low - 1] : updates[low] ?? 0;
}

let pointed = false;
function point(x) {
  hovered = x === null ? null : nearestUpdate(x);
  if (pointed) return;
  pointed = true;
  requestAnimationFrame(() => { pointed = false; placeCursors(); renderReadings(); });
}

function placeCursors() {
  for (const entry of curvePlots) placeCursor(entry);
}

function placeCursor(entry) {
  if (!entry.cursor || !entry.plot.view) return;
  const { frame } = entry.plot.view;
  const x = frame.x_scale.compute(hovered ?? chosen.update);
  const { left, right, top, height } = frame.bbox;
  entry.cursor.hidden = !(x >= left && x <= right);
  Object.assign(entry.cursor.style, { transform: `translateX(${Math.round(x)}px)`, top: `${top}px`, height: `${height}px` });
}

/** What the lines say at the cursor: the numbers of the last point at or before it. */
function renderReadings() {
  const update = hovered ?? chosen.update;
  for (const { chart, reading } of curvePlots) {
    if (!reading.isConnected) continue;
    fill(reading, linesOf(chart).map((line) => {
      const place = line.x.findLastIndex((x) => x <= update);
      const label = (line.isEvaluation ? "eval " : "") + lastOf(line.name.split("/"));
      return make("span", { className: "read" },
        make("i", { className: "swatch " + lineColour(line.index).slice(2) + (line.isEvaluation ? " dotted" : "") }),
        `${label} `, make("b", {}, short((line.shown ?? line.y)[place])));
    }));
  }
}

whenChosen(["update"], () => { placeCursors(); renderReadings(); });
addEventListener("resize", () => requestAnimationFrame(() => setTimeout(placeCursors, 60)));
