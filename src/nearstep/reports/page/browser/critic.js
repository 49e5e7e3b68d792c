// Whether the critic is right, where along the row things happen, and whether a judge agrees with the reward.

function renderCritic() {
  const profile = data.profiles.findLast((each) => each.update <= chosen.update) ?? data.profiles[0] ?? null;
  const judged = judgeCards();
  fill($("critic-note"), profile ? `Of update ${profile.update}, the last with profiles at or before the chosen one.` : "");
  fill($("critic-body"), make("div", { className: "charts" }, profile ? profileCards(profile) : null, judged),
    profile ? null : note("The run recorded no profiles: no calibration of the critic, nothing along the row."),
    judged.length ? null : note("No evaluation ran while training: the reward cannot be held against a held-out judge (eval_dataset_name)."));
}

function profileCards(profile) {
  const along = [["value", "return"], ["advantage_abs"], ["kl"]]
    .map((names) => names.filter((name) => profile.along_row.some((tenth) => tenth[name] !== null)))
    .filter((names) => names.length);
  return [
    profile.value_deciles?.length ? plainCard("Value against return, by deciles of the value",
      "On the line the critic is right; above it, it expects too little. One dot is a tenth of the tokens.", (area) => drawDeciles(area, profile.value_deciles)) : null,
    along.map((names) => plainCard(`Along the row: ${names.map((name) => ALONG[name]).join(" and ")}`,
      "Mean by tenths of the answer, from its first token to its last.",
      (area) => drawAlong(area, profile.along_row, names), names.map((name) => ALONG[name]))),
    profile.masked?.length ? maskedCard(profile.masked) : null,
  ];
}

const ALONG = { value: "value", return: "return", advantage_abs: "|A|", kl: "KL" };

function plainCard(title, says, draw, legend = []) {
  const area = make("div", { className: "plot", role: "img", "aria-label": `${title}. ${says}` });
  drawLater(area, draw);
  return make("figure", { className: "card" },
    make("figcaption", {}, make("h4", {}, title), legend.length < 2 ? null : make("p", { className: "reading" }, legend.map((name, index) =>
      make("span", { className: "read" }, make("i", { className: "swatch line-" + (index + 1) }), name)))),
    area, make("p", { className: "meaning" }, says));
}

function drawDeciles(area, deciles) {
  const x = deciles.map((each) => each.value), y = deciles.map((each) => each.return);
  const [low, high] = span([...x, ...y], 0.1);
  const made = figure({ x: [low, high], y: [low, high], height: 200, xLabel: "value", yLabel: "return" });
  const right = made.line([low, high], [low, high], { line_dash: [4, 4] });
  const line = made.line(x, y, { line_width: 1.25 }), dots = made.scatter(x, y, { size: 7 });
  return show(area, made, () => {
    right.glyph.line_color = colour("--muted");
    for (const each of [line, dots]) each.glyph.line_color = colour("--line-1");
    dots.glyph.fill_color = colour("--line-1");
  });
}

function drawAlong(area, tenths, names) {
  const x = tenths.map((tenth) => tenth.position * 10 + 5);
  const columns = names.map((name) => tenths.map((tenth) => tenth[name]));
  const made = figure({ x: [0, 100], y: span(columns.flat()), height: 200, xLabel: "% of the answer" });
  const lines = columns.map((y) => [made.line(x, gaps(y), { line_width: 1.75 }), made.scatter(x, gaps(y), { size: 5 })]);
  return show(area, made, () => lines.forEach(([line, dots], index) => {
    for (const each of [line, dots]) each.glyph.line_color = colour(lineColour(index));
    dots.glyph.fill_color = colour(lineColour(index));
  }));
}

/** The share of tokens that the trust region masks: by the sign of their advantage and their place in the answer. */
function maskedCard(masked) {
  const most = Math.max(...masked.map((each) => each.share ?? 0), 1e-9);
  const cell = (sign, position) => {
    const found = masked.find((each) => each.sign === sign && each.position === position);
    const made = make("td", { title: found ? `${found.count} tokens` : "" }, found ? Math.round((found.share ?? 0) * 100) : "–");
    if (found) made.style.backgroundColor = shade(((found.share ?? 0) / most) * (sign === "-" ? -0.8 : 0.8));
    return made;
  };
  const tenths = [...Array(10).keys()];
  return make("figure", { className: "card" },
    make("figcaption", {}, make("h4", {}, "Masked tokens, in %")),
    make("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": "Masked tokens by sign and place" }, make("table", { className: "heat" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "A"), tenths.map((tenth) => make("th", { scope: "col" }, `${tenth * 10}`)))),
      make("tbody", {}, [["+", "> 0"], ["-", "< 0"]].map(([sign, label]) =>
        make("tr", {}, make("th", { scope: "row" }, label), tenths.map((tenth) => cell(sign, tenth))))))),
    make("p", { className: "meaning" }, "By sign of the advantage and tenth of the answer (0 is its beginning). Masks pile up where the policy moves fastest."));
}

/** The reward that is trained on and everything that judges apart from it, over the KL: do they still go the same way? */
function judgeCards() {
  const { eval: evals } = data.curves;
  const names = Object.keys(evals.mean);
  const proxy = names.find((name) => name === "eval/objective/scores");
  const judges = names.filter((name) => name !== proxy && /^eval\/(reward|judge|win_rate)\//.test(name) && !/_(std|stderr|none|failed)$/.test(name));
  const kl = names.includes("eval/objective/kl") ? evals.mean["eval/objective/kl"] : evals.last.map((update) => data.curves.train.mean["objective/kl"]?.[pointOf(update)] ?? null);
  if (!proxy || kl.every((each) => each === null)) return [];
  return [proxy, ...judges].map((name) => plainCard(
    name === proxy ? "Reward trained on, over KL" : `Judged apart: ${name.slice(5)}, over KL`,
    name === proxy ? "Each dot is an evaluation, the last one filled. It should rise; what matters is whether the judges rise with it."
      : "Where this turns down while the reward still rises, the policy has found what the reward overlooks.",
    (area) => drawOverKl(area, kl, evals.mean[name])));
}

function drawOverKl(area, x, y) {
  const made = figure({ x: span(x, 0.08), y: span(y, 0.12), height: 200, xLabel: "KL to the reference" });
  const line = made.line(gaps(x), gaps(y), { line_width: 1.25 });
  const dots = made.scatter(gaps(x), gaps(y), { size: 6, line_width: 1.5 }), last = made.scatter([lastOf(x) ?? NaN], [lastOf(y) ?? NaN], { size: 8 });
  return show(area, made, () => {
    for (const each of [line, dots, last]) each.glyph.line_color = colour("--line-1");
    dots.glyph.fill_color = colour("--card");
    last.glyph.fill_color = colour("--line-1");
  });
}

whenChosen(["update"], () => renderCritic());
