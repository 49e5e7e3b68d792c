// What the reader has chosen, and who hears of it: update, sample, token. The address keeps it, so that it can be sent on.

let data = JSON.parse($("data").textContent);
const chosen = { update: 0, sample: null, tokenRow: null, token: 0 };
const hearers = [];

/** Call `hear` with the names of what changed, each time the reader chooses something. */
function whenChosen(names, hear) {
  hearers.push([names, hear]);
}

function choose(values) {
  const changed = Object.keys(values).filter((name) => chosen[name] !== values[name]);
  if (changed.length === 0) return;
  Object.assign(chosen, values);
  for (const [names, hear] of hearers) if (names.some((name) => changed.includes(name))) hear();
  keepInAddress();
}

const keyOf = (row) => `${row.update}:${row.episode}`;
const firstUpdate = () => data.curves.train.first[0] ?? 0;
const lastUpdate = () => lastOf(data.curves.train.last) ?? 0;

function keepInAddress() {
  const place = new URLSearchParams();
  if (chosen.update) place.set("at", chosen.update);
  if (chosen.sample) place.set("sample", chosen.sample);
  if (chosen.tokenRow) place.set("tokens", chosen.tokenRow);
  try {
    history.replaceState(null, "", "#" + place);
  } catch {
    // A browser may refuse this of a file, or when it comes too often: the report works without.
  }
}

function readAddress() {
  const place = new URLSearchParams(location.hash.slice(1));
  const update = Number(place.get("at"));
  return {
    update: update >= firstUpdate() && update <= lastUpdate() && update > 0 ? update : lastUpdate(),
    sample: place.get("sample"),
    tokenRow: place.get("tokens"),
  };
}
