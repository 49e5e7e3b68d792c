// The keys, and light or dark.

const KEYS = {
  n: () => stepUpdate(1), p: () => stepUpdate(-1), g: () => stepUpdate(-Infinity), G: () => stepUpdate(Infinity),
  j: () => stepSample(1), k: () => stepSample(-1),
  "/": () => { $("samples").scrollIntoView(); $("find").focus({ preventScroll: true }); },
  "?": () => $("keys").showModal(),
};

function beginKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS) || $("keys").open) return;
    if (event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea")) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  $("find").addEventListener("keydown", (event) => { if (event.key === "Escape") event.target.blur(); });
  $("show-keys").addEventListener("click", () => $("keys").showModal());
  $("close-keys").addEventListener("click", () => $("keys").close());
  $("update-back").addEventListener("click", () => stepUpdate(-1));
  $("update-on").addEventListener("click", () => stepUpdate(1));
  $("update-slider").addEventListener("input", (event) => choose({ update: nearestUpdate(Number(event.target.value)) }));
}

/** As the system has it, until the reader chooses; a print is always light. */
function beginTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let theme = null;
  const apply = (printing = false) => {
    const dark = !printing && (theme ?? (system.matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    fill($("theme"), dark ? "Light" : "Dark");
    repaint();
  };
  $("theme").addEventListener("click", () => {
    theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    apply();
  });
  system.addEventListener("change", () => apply());
  addEventListener("beforeprint", () => apply(true));
  addEventListener("afterprint", () => apply());
  apply();
}
