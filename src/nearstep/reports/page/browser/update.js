// One update: its numbers, what the rules of health said, its rows. And the bar that chooses it.

function renderUpdateBar() {
  const slider = $("update-slider");
  Object.assign(slider, { min: firstUpdate(), max: lastUpdate(), value: chosen.update });
  const { first, last, each } = data.curves.train;
  const index = pointOf(chosen.update);
  const words = each > 1 && index >= 0 ? `updates ${first[index]}–${last[index]} of ${lastUpdate()}` : `update ${chosen.update} of ${lastUpdate()}`;
  fill($("update-place"), last.length ? words : "no update yet");
  slider.setAttribute("aria-valuetext", words);
}

/** The point of the curves that holds an update. */
const pointOf = (update) => data.curves.train.last.findIndex((last) => last >= update);

function stepUpdate(by) {
  const { last } = data.curves.train;
  const index = Math.min(Math.max(pointOf(chosen.update) + by, 0), last.length - 1);
  if (last.length) choose({ update: last[index] });
}

function renderUpdate() {
  const { train } = data.curves;
  const index = pointOf(chosen.update);
  if (index < 0) {
    fill($("update-body"), note("No update is logged yet."));
    return;
  }
  fill($("update-title"), train.each > 1 ? `Updates ${train.first[index]} to ${train.last[index]}` : `Update ${chosen.update}`);
  const said = data.alerts.filter((alert) => alert.update >= train.first[index] && alert.update <= train.last[index]);
  const rows = data.samples.rows.filter((row) => row.update >= train.first[index] && row.update <= train.last[index]);
  fill($("update-body"),
    said.map(alertCard),
    make("div", { className: "numbers" }, data.curves.groups.map((group) => numbersOf(group, index))),
    make("p", { className: "muted" }, rows.length
      ? [`${rows.length} of its rows ${rows.length === 1 ? "is" : "are"} below. `, make("button", { type: "button", onclick: () => showSamplesOf() }, "Show them")]
      : "None of its rows is kept in this report."));
}

function numbersOf(group, index) {
  const { train } = data.curves;
  const names = [...group.charts, ...group.more].flatMap((chart) => chart.names).filter((name) => name in train.mean);
  if (names.length === 0) return null;
  return make("details", { open: matchMedia("(min-width: 700px)").matches },
    make("summary", {}, group.title),
    make("dl", { className: "pairs" }, names.map((name) => {
      const now = train.mean[name][index], before = index > 0 ? train.mean[name][index - 1] : null;
      return make("div", { title: data.curves.meanings[name] }, make("dt", {}, name), make("dd", {}, short(now, 4), change(now, before)));
    })));
}

/** How a number moved since the point before. */
function change(now, before) {
  if (before === null || before === undefined || now === null || now === before) return make("span", { className: "change" }, "");
  return make("span", { className: "change" }, (now > before ? "↑ " : "↓ ") + short(Math.abs(now - before), 2));
}

whenChosen(["update"], () => { renderUpdateBar(); renderUpdate(); });
