// What happens when the page is opened.

function renderAll() {
  renderSummary();
  renderUpdateBar();
  renderUpdate();
  renderSampleTools();
  renderSamples();
  renderSample();
  renderTokenTools();
  chosen.tokenRow = tokenRow() ? chosen.tokenRow : data.tokens.rows.length ? keyOf(lastOf(data.tokens.rows)) : null;
  renderTokens();
  renderCritic();
  renderRun();
}

beginTheme();
Object.assign(chosen, readAddress());
renderCurves();
renderAll();
renderReadings();
beginSamples();
beginTokens();
beginKeys();
beginLive();
drawInIdleTime();
