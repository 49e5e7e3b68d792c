// A run that goes on: ask the server, which this page came from, for what is newer, and show it.

const ASK_AGAIN = 2000; // milliseconds

function beginLive() {
  if (data.live === undefined) return;
  setTimeout(askForNewer, ASK_AGAIN);
  renderLive(data.live.words);
}

function renderLive(words, lost = false) {
  $("live-state").className = lost ? "live lost" : "live";
  fill($("live-state"), words);
}

async function askForNewer() {
  try {
    const answer = await fetch(`data?after=${data.live.version}`, { cache: "no-store", credentials: "same-origin" });
    if (answer.status === 200) takeNewer(await answer.json());
    else if (answer.status === 204) renderLive(decodeURIComponent(answer.headers.get("x-live") ?? ""));
    else renderLive(`The server answers ${answer.status}; what is shown may be old.`, true);
  } catch {
    renderLive("The server is gone; what is shown may be old.", true);
  }
  setTimeout(askForNewer, document.hidden ? 5 * ASK_AGAIN : ASK_AGAIN);
}

/** Show newer data. Who looks at the last update stays with the last; everything else stays as it was chosen. */
function takeNewer(newer) {
  const atEnd = chosen.update === lastUpdate();
  const sameCharts = JSON.stringify(newer.curves.groups) === JSON.stringify(data.curves.groups);
  data = newer;
  if (sameCharts) updateCurves(); else renderCurves();
  const update = atEnd || chosen.update > lastUpdate() ? lastUpdate() : chosen.update;
  renderAll();
  choose({ update });
  renderReadings();
  renderLive(data.live.words);
}
