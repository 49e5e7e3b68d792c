// Small charts, drawn by bokeh when they come into view, in the colours of the theme.

const plots = new Set();
const waiting = new Map(); // element to draw in -> how
const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5"];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const lineColour = (index) => COLOURS[index % COLOURS.length];

const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawNow(entry.target);
}, { rootMargin: "200px" });

/** Draw in `element` once it is near the view, or the browser has time; `draw` makes a plot. */
function drawLater(element, draw) {
  waiting.set(element, draw);
  nearby.unobserve(element); // one that was seen before is told of again
  nearby.observe(element);
}

function drawNow(element) {
  const draw = waiting.get(element);
  if (draw === undefined) return;
  waiting.delete(element);
  nearby.unobserve(element);
  draw(element);
}

/** Draw the others one by one while nothing else is to be done, so that a print shows them all. */
function drawInIdleTime() {
  const element = [...waiting.keys()].find((each) => each.isConnected && each.offsetParent !== null);
  if (element !== undefined) drawNow(element);
  for (const each of waiting.keys()) if (!each.isConnected) waiting.delete(each);
  setTimeout(drawInIdleTime, element === undefined ? 1000 : 60);
}

/** A figure without tools of its own but zooming, with ranges that are given. */
function figure({ x, y, height = 150, xLabel = null, yLabel = null, zoom = false }) {
  const fine = matchMedia("(pointer: fine)").matches;
  const made = Bokeh.Plotting.figure({
    height, sizing_mode: "stretch_width", x_range: range(x), y_range: range(y),
    tools: zoom && fine ? [new Bokeh.BoxZoomTool({ dimensions: "width" })] : [], toolbar_location: null,
    min_border_left: 46, min_border_right: 8, min_border_top: 4, min_border_bottom: 20,
  });
  made.xaxis.axis_label = xLabel;
  made.yaxis.axis_label = yLabel;
  made.xaxis.ticker = new Bokeh.BasicTicker({ desired_num_ticks: 5 });
  made.yaxis.ticker = new Bokeh.BasicTicker({ desired_num_ticks: 4 });
  return made;
}

const range = ([start, end]) => new Bokeh.Range1d({ start, end });

/** Put a figure into an element. `paint` sets the colours, again when the theme changes. */
async function show(element, made, paint) {
  const plot = { element, figure: made, view: null, paint: () => { paintFrame(made); paint(); } };
  plot.paint();
  plots.add(plot);
  const place = make("div", { className: "canvas" });
  fill(element, place);
  plot.view = await Bokeh.Plotting.show(made, place);
  element.dispatchEvent(new CustomEvent("drawn"));
  return plot;
}

function paintFrame(made) {
  made.background_fill_color = null;
  made.border_fill_color = null;
  made.outline_line_color = null;
  made.xgrid.grid_line_color = null;
  made.ygrid.grid_line_color = colour("--grid");
  for (const axis of [made.xaxis, made.yaxis]) {
    axis.axis_line_color = colour("--rule");
    axis.major_tick_line_color = null;
    axis.minor_tick_line_color = null;
    axis.major_label_text_color = colour("--muted");
    axis.major_label_text_font_size = "11px";
    axis.axis_label_text_color = colour("--muted");
    axis.axis_label_text_font_size = "11px";
    axis.axis_label_text_font_style = "normal";
  }
}

function repaint() {
  for (const plot of plots) {
    if (plot.element.isConnected) plot.paint();
    else plots.delete(plot);
  }
}

/** From the smallest to the largest number with room around them; room to see a line where all are the same. */
function span(numbers, room = 0.06) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) {
    if (number === null || number === undefined) continue;
    if (number < low) low = number;
    if (number > high) high = number;
  }
  if (low === Infinity) return [0, 1];
  const width = high - low || Math.abs(high) * 0.1 || 1;
  return [low - room * width, high + room * width];
}

/** NaN where there is no number: a gap in a line. */
const gaps = (numbers) => numbers.map((number) => number ?? NaN);
