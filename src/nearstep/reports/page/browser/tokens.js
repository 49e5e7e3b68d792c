// One row token by token: its tokens coloured by a quantity, the numbers of the one that is looked at beside them.

// What can be shown of a token: words, formula, and how it is coloured. `middle` is where a two-sided scale has no colour.
const QUANTITIES = {
  logprob: { words: "log-prob now", says: "log π after the update", scale: "surprise" },
  sampled_logprob: { words: "log-prob sampled", says: "log μ as the engine had it", scale: "surprise" },
  old_logprob: { words: "log-prob old", says: "log π_old, against which ratios are taken", scale: "surprise" },
  ref_logprob: { words: "log-prob reference", says: "log π_ref", scale: "surprise" },
  ratio: { words: "ratio", says: "π / π_old after the update", middle: 1 },
  region_weight: { words: "region weight", says: "what the trust region leaves of the gradient; 0 is masked", scale: "low" },
  advantage: { words: "advantage", says: "as the rule has it", middle: 0 },
  whitened_advantage: { words: "advantage, whitened", says: "what the loss multiplies with", middle: 0 },
  value: { words: "value", says: "what the critic expects from here", middle: "mean" },
  return: { words: "return", says: "what came", middle: "mean" },
  reward: { words: "reward", says: "of this token, KL penalty included", middle: 0 },
  entropy: { words: "entropy", says: "of the distribution of the token, nats", scale: "high" },
  kl: { words: "KL", says: "against the reference, by the chosen estimator", middle: 0 },
};
const strip = { quantity: "advantage", pointed: null };

const tokenRow = () => data.tokens.rows.find((row) => keyOf(row) === chosen.tokenRow) ?? null;

function renderTokenTools() {
  const rows = data.tokens.rows;
  fill($("tokens-note"), rows.length ? data.tokens.rule : "");
  $("tokens").querySelector(".tools").hidden = rows.length === 0;
  $("strip").hidden = $("along").hidden = rows.length === 0;
  fill($("token-row"), rows.map((row) => make("option", { value: keyOf(row), selected: keyOf(row) === chosen.tokenRow },
    `update ${row.update}, episode ${row.episode}, ${row.count} tokens, score ${short(row.score)}`)));
  if (rows.length === 0) {
    fill($("token-prompt"), "No row was recorded token by token. nearstep replay RUN --update N --row K computes one again.");
    fill($("token-numbers"));
  }
}

/** The scale of a quantity: how strong (−1 to 1) each number is coloured, and the numbers at the legend's ends. */
function scaleOf(name, numbers) {
  const there = numbers.filter((number) => number !== null);
  const { scale, middle } = QUANTITIES[name];
  if (middle !== undefined) {
    const at = middle === "mean" ? there.reduce((sum, number) => sum + number, 0) / Math.max(1, there.length) : middle;
    const reach = Math.max(...there.map((number) => Math.abs(number - at)), 1e-9);
    return { of: (number) => (number - at) / reach, ends: [at - reach, at + reach] };
  }
  const [low, high] = [Math.min(...there), Math.max(...there)];
  if (scale === "high") return { of: (number) => number / (high || 1), ends: [0, high], oneSided: true };
  if (scale === "low") return { of: (number) => number - 1, ends: [0, 1], oneSided: true, reversed: true };
  return { of: (number) => number / Math.abs(low || -1), ends: [low, 0], oneSided: true, reversed: true }; // surprise
}

/** The colour of a strength: the accent above the middle, the warm colour below it. */
const shade = (strength) => `color-mix(in srgb, var(${strength < 0 ? "--below" : "--above"}) ${Math.round(Math.min(1, Math.abs(strength)) * 55)}%, transparent)`;

function renderTokens() {
  const row = tokenRow();
  if (row === null) return;
  const there = Object.keys(QUANTITIES).filter((name) => row.numbers[name]?.some((number) => number !== null));
  if (!there.includes(strip.quantity)) strip.quantity = there[0];
  fill($("token-quantity"), there.map((name) => make("option", { value: name, selected: name === strip.quantity }, QUANTITIES[name].words)));
  $("token-row").value = chosen.tokenRow;
  fill($("token-prompt"), visible(data.prompts[row.prompt]));
  fill($("strip"), row.tokens.flatMap((text, index) => {
    const masked = row.numbers.region_weight?.[index] === 0;
    const heard = row.before?.[index]; // what a tool or a user said between two turns
    const between = heard ? [make("span", { className: "heard", role: "none", title: "not the policy's: read between its turns" }, visible(heard))] : [];
    return [...between, make("span", { id: `token-${index}`, role: "option", className: masked ? "token masked" : "token", "aria-selected": "false", "data-index": index },
      visible(text).replaceAll("\n", "⏎\n") || "∅")];
  }), row.count > row.tokens.length ? make("span", { className: "muted" }, ` … ${row.count - row.tokens.length} more tokens are not in this report`) : null);
  colourTokens();
  renderToken();
}

function colourTokens() {
  const row = tokenRow();
  const numbers = row.numbers[strip.quantity];
  const { of, ends, oneSided, reversed } = scaleOf(strip.quantity, numbers);
  for (const token of $("strip").querySelectorAll(".token")) {
    const number = numbers[token.dataset.index];
    token.style.backgroundColor = number === null ? "" : shade(of(number));
  }
  const bar = make("span", { className: "ramp" });
  bar.style.background = oneSided
    ? `linear-gradient(to right, ${reversed ? `${shade(-1)}, ${shade(0)}` : `${shade(0)}, ${shade(1)}`})`
    : `linear-gradient(to right, ${shade(-1)}, ${shade(0)}, ${shade(1)})`;
  fill($("token-legend"), short(ends[0]), bar, short(lastOf(ends)),
    make("span", { className: "token masked legend" }, "masked"));
  drawAlongTokens();
}

/** The quantity over the places of the tokens; value and return together, since the critic is to meet the return. */
function drawAlongTokens() {
  const row = tokenRow();
  const pair = ["value", "return"];
  const names = pair.includes(strip.quantity) ? pair.filter((name) => row.numbers[name]) : [strip.quantity];
  const columns = names.map((name) => gaps(row.numbers[name]));
  const x = row.tokens.map((_, index) => index + 1);
  fill($("along-title"), names.map((name, index) => make("span", { className: "read" },
    make("i", { className: "swatch line-" + (index + 1) }), `${QUANTITIES[name].words} `)), "along the row");
  const area = $("along").querySelector(".plot");
  area.setAttribute("aria-label", `${names.map((name) => QUANTITIES[name].words).join(" and ")} of each token`);
  drawLater(area, () => {
    const made = figure({ x: [0.5, x.length + 0.5], y: span(columns.flat().filter((number) => !Number.isNaN(number)), 0.1) });
    const lines = columns.map((y) => [made.step(x, y, "center", { line_width: 1.5 }), made.scatter(x, y, { size: x.length > 80 ? 0 : 5 })]);
    made.on_event("tap", (event) => choose({ token: Math.min(Math.max(Math.round(event.x) - 1, 0), x.length - 1) }));
    return show(area, made, () => lines.forEach(([line, dots], index) => {
      for (const each of [line, dots]) each.glyph.line_color = colour(lineColour(index));
      dots.glyph.fill_color = colour(lineColour(index));
    }));
  });
}

/** The numbers of the token under the pointer, or of the chosen one. */
function renderToken() {
  const row = tokenRow();
  if (row === null) return;
  const index = Math.min(strip.pointed ?? chosen.token, row.tokens.length - 1);
  $("strip").setAttribute("aria-activedescendant", `token-${index}`);
  for (const token of $("strip").querySelectorAll('[aria-selected="true"]')) token.setAttribute("aria-selected", "false");
  $(`token-${index}`)?.setAttribute("aria-selected", "true");
  fill($("token-numbers"),
    make("h3", {}, `Token ${index + 1} of ${row.count}`),
    make("p", { className: "text token-text" }, visible(JSON.stringify(row.tokens[index] ?? "")), make("span", { className: "muted" }, ` id ${row.ids[index]}`)),
    make("dl", { className: "token-list" }, Object.entries(QUANTITIES).map(([name, { words: label, says }]) => {
      const column = row.numbers[name];
      return column ? make("div", { className: name === strip.quantity ? "now" : "" }, make("dt", {}, label, make("small", {}, says)), make("dd", {}, short(column[index], 4))) : null;
    })));
}

function stepToken(by) {
  const row = tokenRow();
  if (row === null) return;
  strip.pointed = null;
  choose({ token: Math.min(Math.max(chosen.token + by, 0), row.tokens.length - 1) });
  $(`token-${chosen.token}`)?.scrollIntoView({ block: "nearest" });
}

function beginTokens() {
  $("token-row").addEventListener("change", (event) => choose({ tokenRow: event.target.value, token: 0 }));
  $("token-quantity").addEventListener("change", (event) => { strip.quantity = event.target.value; colourTokens(); renderToken(); });
  const indexAt = (event) => event.target.closest(".token")?.dataset.index;
  $("strip").addEventListener("pointerover", (event) => {
    const index = indexAt(event);
    if (index !== undefined) { strip.pointed = Number(index); renderToken(); }
  });
  $("strip").addEventListener("pointerleave", () => { strip.pointed = null; renderToken(); });
  $("strip").addEventListener("click", (event) => {
    const index = indexAt(event);
    if (index !== undefined) choose({ token: Number(index) });
  });
  $("strip").addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, PageUp: -20, PageDown: 20 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    stepToken(steps[event.key]);
  });
}

whenChosen(["tokenRow"], renderTokens);
whenChosen(["token"], renderToken);
