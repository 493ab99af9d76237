/* Runs before the first paint, so that a remembered theme does not flash. */
(() => {
  try {
    const kept = localStorage.getItem("penstock.theme");
    if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  } catch { /* storage is blocked: the system's theme holds */ }
})();
