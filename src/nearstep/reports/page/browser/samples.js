// The episodes of a run: sorted, searched, one of them in full, and the same prompt over the run.

const narrow = matchMedia("(max-width: 900px)");
const PAGE = narrow.matches ? 8 : 20;
const view = { find: "", which: "all", sort: "update", descending: true, page: 0, against: "before" };
let shownRows = [];

const COLUMNS = () => ({ update: "update", ...data.samples.quantities });

function renderSampleTools() {
  const counted = (name) => data.samples.rows.some((row) => row[name] !== null && row[name] !== undefined);
  const columns = Object.entries(COLUMNS()).filter(([name]) => counted(name));
  fill($("sort"), columns.map(([name, words]) => make("option", { value: name, selected: name === view.sort }, words)));
  fill($("which"), [["all", "all updates"], ["update", "the chosen update"], ["tokens", "rows with tokens"], ["open", "answers that were cut off"]]
    .map(([value, words]) => make("option", { value, selected: value === view.which }, words)));
  fill($("samples-note"), data.samples.count ? data.samples.rule : "");
  for (const id of ["samples-tools"]) $(id).hidden = data.samples.count === 0;
}

/** Sort, filter, and show the page; the chosen row stays chosen. */
function renderSamples() {
  const withTokens = new Set(data.tokens.rows.map(keyOf));
  const { first, last } = data.curves.train;
  const index = pointOf(chosen.update);
  const find = view.find.toLowerCase();
  shownRows = data.samples.rows.filter((row) =>
    (view.which !== "update" || (row.update >= first[index] && row.update <= last[index]))
    && (view.which !== "tokens" || withTokens.has(keyOf(row)))
    && (view.which !== "open" || row.finished === false)
    && (!find || row.answer.toLowerCase().includes(find) || data.prompts[row.prompt].toLowerCase().includes(find)));
  const sign = view.descending ? -1 : 1;
  const { sort } = view;
  shownRows.sort((a, b) => (a[sort] === null) - (b[sort] === null) || sign * (a[sort] - b[sort]) || a.episode - b.episode);
  view.page = Math.min(view.page, Math.max(0, Math.ceil(shownRows.length / PAGE) - 1));
  renderSamplePage();
}

function renderSamplePage() {
  if (data.samples.count === 0) {
    fill($("sample-table"));
    $("page-back").parentElement.hidden = true;
    return;
  }
  $("page-back").parentElement.hidden = shownRows.length <= PAGE;
  const columns = Object.entries(COLUMNS()).filter(([name]) => data.samples.rows.some((row) => row[name] !== null && row[name] !== undefined));
  const page = shownRows.slice(view.page * PAGE, (view.page + 1) * PAGE);
  fill($("sample-table"),
    make("thead", {}, make("tr", {}, columns.map(([name, label]) =>
      make("th", { scope: "col", className: "number of-" + name, "aria-sort": view.sort !== name ? null : view.descending ? "descending" : "ascending" },
        make("button", { type: "button", onclick: () => sortBy(name) }, label))), make("th", { scope: "col" }, "answer"))),
    make("tbody", {}, page.map((row) => sampleRow(row, columns))));
  fill($("samples-count"), shownRows.length === data.samples.rows.length ? "" : `${shownRows.length} rows`);
  const pages = Math.ceil(shownRows.length / PAGE);
  fill($("page-place"), pages ? `${view.page + 1} of ${pages}` : "no row");
  $("page-back").disabled = view.page === 0;
  $("page-on").disabled = view.page >= pages - 1;
}

function sampleRow(row, columns) {
  const key = keyOf(row);
  return make("tr", { "aria-current": key === chosen.sample ? "true" : null, onclick: () => {
    choose({ sample: key, update: row.update });
    if (narrow.matches) $("sample").scrollIntoView();
  } },
    columns.map(([name]) => make("td", { className: "number of-" + name }, short(row[name]))),
    make("td", { className: "answer" }, make("button", { type: "button", className: "plain" }, visible(row.answer.trim().slice(0, 160)) || "(empty)"),
      row.finished === false ? make("span", { className: "tag" }, "cut off") : null));
}

function sortBy(name) {
  Object.assign(view, { descending: view.sort === name ? !view.descending : true, sort: name, page: 0 });
  $("sort").value = view.sort;
  $("descending").checked = view.descending;
  renderSamples();
}

function stepSample(by) {
  if (shownRows.length === 0) return;
  const now = shownRows.findIndex((row) => keyOf(row) === chosen.sample);
  const next = now < 0 ? 0 : Math.min(Math.max(now + by, 0), shownRows.length - 1);
  view.page = Math.floor(next / PAGE);
  choose({ sample: keyOf(shownRows[next]), update: shownRows[next].update });
  renderSamplePage();
  $("sample-table").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

function showSamplesOf() {
  Object.assign(view, { which: "update", page: 0 });
  $("which").value = "update";
  renderSamples();
  $("samples").scrollIntoView();
}

/** One sample in full. */
function renderSample() {
  const row = data.samples.rows.find((each) => keyOf(each) === chosen.sample) ?? null;
  if (row === null) {
    const fixed = data.fixed[0];
    fill($("sample"), data.samples.count ? note("Choose a row to read it in full.") : null, fixed ? historyOf(fixed.prompt) : null);
    return;
  }
  const hasTokens = data.tokens.rows.some((each) => keyOf(each) === chosen.sample);
  fill($("sample"),
    make("h3", {}, `Update ${row.update}, episode ${row.episode}`),
    make("dl", { className: "pairs compact" },
      Object.entries(data.samples.quantities).map(([name, label]) => row[name] === null ? null : make("div", {}, make("dt", {}, label), make("dd", {}, short(row[name])))),
      Object.entries(row.parts).map(([name, part]) => make("div", {}, make("dt", {}, `reward ${name}`), make("dd", {}, part === null ? "none" : short(part)))),
      make("div", {}, make("dt", {}, "ended itself"), make("dd", {}, row.finished === null ? "–" : row.finished ? "yes" : "no, cut off"))),
    make("p", {}, hasTokens
      ? make("button", { type: "button", onclick: () => { choose({ tokenRow: chosen.sample, token: 0 }); $("tokens").scrollIntoView(); } }, "See its tokens")
      : make("span", { className: "muted" }, "Its tokens were not recorded; ", make("code", {}, `nearstep replay ${data.run.folder} --update ${row.update} --row K`), " computes a row again.")),
    make("h4", {}, "Prompt"), promptText(row.prompt),
    make("h4", {}, "Answer"), make("p", { className: "text" }, visible(row.answer)),
    historyOf(row.prompt, row));
}

/** All answers to a prompt that the report has, each against the one before, the first, or the start's. */
function historyOf(prompt, row = null) {
  const episodes = data.samples.rows.filter((each) => each.prompt === prompt).map((each) => ({ ...each, kind: "episode" }));
  const fixed = data.fixed.filter((each) => each.prompt === prompt).map((each) => ({ ...each, kind: "fixed prompt" }));
  const answers = [...episodes, ...fixed].sort((a, b) => a.update - b.update);
  const start = fixed.find((each) => each.start !== null)?.start ?? null;
  const choices = [["before", "the answer before"], ["first", "the first answer"], ...(start === null ? [] : [["start", "the start's answer"]])];
  const against = choices.some(([value]) => value === view.against) ? view.against : "before";
  if (answers.length < 2 && start === null) return row === null ? null : make("p", { className: "muted" }, "No other answer to this prompt is kept.");
  const others = [...new Set(data.fixed.map((each) => each.prompt))];
  return make("div", { className: "history" },
    make("h4", {}, "The same prompt over the run"),
    row === null ? make("p", { className: "tools" }, make("label", {}, "Prompt ", make("select", { onchange: (event) => {
      const next = historyOf(Number(event.target.value));
      event.target.closest(".history").replaceWith(next);
    } }, others.map((each) => make("option", { value: each, selected: each === prompt }, visible(data.prompts[each]).slice(0, 80)))))) : null,
    row === null ? promptText(prompt) : null,
    make("p", { className: "tools" }, make("label", {}, "What changed against ", make("select", { onchange: (event) => {
      view.against = event.target.value;
      event.target.closest(".history").replaceWith(historyOf(prompt, row));
    } }, choices.map(([value, label]) => make("option", { value, selected: value === against }, label))))),
    start === null ? null : make("div", { className: "step" }, make("p", { className: "muted" }, "start", scoreOf(fixed[0].start_score)), make("p", { className: "text" }, visible(start))),
    answers.slice(-30).map((answer, index, all) => {
      const before = against === "start" ? start : against === "first" ? all[0].answer : all[index - 1]?.answer ?? start;
      return make("div", { className: "step" },
        make("p", { className: "muted" }, `update ${answer.update}, ${answer.kind}`, scoreOf(answer.score)),
        before === null || before === undefined || (against === "first" && index === 0) ? make("p", { className: "text" }, visible(answer.answer)) : diffText(before, answer.answer));
    }),
    fixed[0]?.reference ? make("div", { className: "step" }, make("p", { className: "muted" }, "reference"), make("p", { className: "text" }, visible(fixed[0].reference))) : null);
}

// A long prompt scrolls, by keyboard too.
const promptText = (number) => make("p", { className: "text prompt", tabindex: "0", role: "group", "aria-label": "Prompt" }, visible(data.prompts[number]));

const scoreOf = (score) => score === null || score === undefined ? null : make("span", { className: "score" }, `score ${short(score)}`);

function beginSamples() {
  $("find").addEventListener("input", (event) => { view.find = event.target.value; view.page = 0; renderSamples(); });
  $("which").addEventListener("change", (event) => { view.which = event.target.value; view.page = 0; renderSamples(); });
  $("sort").addEventListener("change", (event) => { view.sort = event.target.value; view.page = 0; renderSamples(); });
  $("descending").addEventListener("change", (event) => { view.descending = event.target.checked; view.page = 0; renderSamples(); });
  $("page-back").addEventListener("click", () => { view.page -= 1; renderSamplePage(); });
  $("page-on").addEventListener("click", () => { view.page += 1; renderSamplePage(); });
}

whenChosen(["sample"], () => { renderSamplePage(); renderSample(); });
whenChosen(["update"], () => { if (view.which === "update") renderSamples(); });
