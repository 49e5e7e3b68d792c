// How the run stands in one look, and how it was made: verdict, first and last figures, command, batch, settings.

const FIGURES = { "objective/rlhf_reward": "reward", "objective/scores": "score", "objective/kl": "KL", "response/length_mean": "length",
  "val/num_eos_tokens": "ended itself", "policy/entropy_avg": "entropy", "val/explained_variance": "explained variance" };
const LEVELS = { error: "ill", warn: "watch", info: "told" };

function renderSummary() {
  const { mean } = data.curves.train;
  fill($("name"), data.run.name);
  fill($("figures"), Object.entries(FIGURES).filter(([name]) => mean[name]?.some((each) => each !== null)).map(([name, label]) => {
    const numbers = mean[name].filter((each) => each !== null);
    return make("div", { className: "figure", title: data.curves.meanings[name] },
      make("span", { className: "label" }, label), make("b", {}, short(lastOf(numbers))), make("span", { className: "from" }, `from ${short(numbers[0])}`));
  }), make("div", { className: "figure" }, make("span", { className: "label" }, "updates"), make("b", {}, short(data.run.updates)),
    make("span", { className: "from" }, `${short(data.run.episodes ?? 0)} episodes, ${duration(data.run.seconds)}`)));
  renderHealth();
  fill($("absent"), data.absent.length === 0 ? null : make("details", { className: "absent" },
    make("summary", {}, data.absent.length === 1 ? "One part is absent" : `${data.absent.length} parts are absent`),
    make("ul", {}, data.absent.map((each) => make("li", {}, each)))));
}

function renderHealth() {
  const { state, title, text, evidence, past } = data.health;
  $("verdict-pill").className = `pill ${state}`;
  fill($("verdict-pill"), title);
  fill($("health"), make("div", { className: "verdict" },
    make("p", {}, make("b", {}, title), ". ", text),
    evidence.map(alertCard),
    past.length === 0 ? null : make("details", { className: "absent" },
      make("summary", {}, past.length === 1 ? "One thing was told while the run went on" : `${past.length} things were told while the run went on`), past.map(alertCard))));
}

/** One thing that a rule of health said: where, what, what to look at and what to do. */
function alertCard(alert) {
  return make("div", { className: `alert ${alert.level}${alert.follows_from?.length ? " consequence" : ""}` },
    make("p", {}, make("span", { className: "level" }, LEVELS[alert.level] ?? alert.level), make("b", {}, alert.title), " ",
      sinceButton(alert.since ?? alert.update),
      alert.follows_from?.length ? make("span", { className: "muted" }, ` follows from ${alert.follows_from.join(", ")}`) : null),
    alert.text ? make("p", {}, visible(alert.text)) : null,
    alert.look_at ? make("p", { className: "advice" }, make("span", { className: "muted" }, "Look at "), visible(alert.look_at)) : null,
    alert.next ? make("p", { className: "advice" }, make("span", { className: "muted" }, "Then "), visible(alert.next)) : null);
}

const sinceButton = (update) => make("button", { type: "button", className: "link", onclick: () => choose({ update: nearestUpdate(update) }) }, `since update ${update}`);

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 60) return `${short(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function renderRun() {
  const { info, settings, changed, folder } = data.run;
  const attempts = info.attempts ?? [];
  const last = lastOf(attempts);
  const changes = Object.entries(changed);
  fill($("run-body"),
    attempts.map((attempt, index) => make("div", {},
      make("p", { className: "muted" }, attempts.length === 1 ? "" : `Attempt ${index + 1}, after update ${attempt.after_update}. `, `Started ${attempt.started}.`),
      make("pre", { className: "command", tabindex: "0", "aria-label": "Command" }, visible(attempt.command.map(quoted).join(" "))))),
    make("div", { className: "cards" },
      last ? make("div", { className: "card" }, make("h3", {}, "Where and with what"), make("dl", { className: "pairs" }, facts(info, last).map(([name, value]) =>
        make("div", {}, make("dt", {}, name), make("dd", {}, visible(String(value))))))) : null,
      info.batch?.length ? make("div", { className: "card" }, make("h3", {}, "Batch arithmetic"),
        make("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": "Batch arithmetic" }, table(["quantity", "value", "how it came about"], info.batch.map((row) => [row.name, String(row.value), row.how])))) : null),
    make("div", { className: "card" }, make("h3", {}, "What differs from the defaults"), changes.length === 0 ? note("Nothing that is known.")
      : make("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": "Changed settings" }, table(["setting", "value", "default"], changes.map(([name, { value, default: usual }]) => [name, visible(value), visible(usual)])))),
    Object.keys(settings).length === 0 ? null : make("details", {}, make("summary", {}, `All ${Object.keys(settings).length} settings`),
      make("dl", { className: "pairs" }, Object.entries(settings).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, visible(value)))))),
    make("p", { className: "muted made" }, `Written ${data.made} by nearstep ${data.nearstep} from ${folder}. The file holds all it shows; it loads nothing.`));
}

function facts(info, attempt) {
  return [
    ["seed", info.seed], ["recipe", info.recipe ?? "none"],
    ["commit", attempt.commit ? attempt.commit.slice(0, 12) + (attempt.uncommitted_changes ? ", with changes that are not committed" : "") : "none known"],
    ["begun from", info.parent ? `${info.parent.run} after update ${info.parent.update}` : null],
    ["python", attempt.python], ["machine", attempt.machine], ["devices", attempt.devices?.join(", ")], ["processes", attempt.processes],
    ...Object.entries(attempt.versions ?? {}),
  ].filter(([, value]) => value !== null && value !== undefined);
}

const quoted = (word) => /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
