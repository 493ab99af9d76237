/* Keeps the live part of a page fresh: asks for it every 2 s, not in hidden tabs, and says how old the data is when
   no answer comes. Failures are retried with back-off; what is on the page stays. */
(() => {
  const PERIOD_MS = 2000, BACKOFF_MS = [2000, 4000, 8000, 15000], STALE_MS = 6000;
  const region = document.querySelector("[data-live]");
  if (!region) return;
  const mark = document.querySelector("[data-live-mark]"), word = document.querySelector("[data-live-word]");
  const note = document.querySelector("[data-stale]"), noteAge = document.querySelector("[data-stale-age]");
  let lastGood = performance.now(), failures = 0, timer = 0, isAsking = false;

  const age = (ms) => {
    const seconds = Math.round(ms / 1000);
    return seconds < 60 ? `${seconds} s` : seconds < 3600 ? `${Math.floor(seconds / 60)} min ${seconds % 60} s` : `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
  };
  const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const show = () => {
    const old = performance.now() - lastGood, isStale = failures > 0 && old > STALE_MS;
    mark.classList.toggle("stale", isStale);
    set(word, isStale ? "Not live" : "Live");
    note.hidden = !isStale;
    if (isStale) set(noteAge, age(old));
  };
  const later = (ms) => { clearTimeout(timer); timer = setTimeout(ask, ms); };
  const ask = () => {
    if (document.hidden || isAsking) return;
    isAsking = true;
    region.dispatchEvent(new Event("tick"));
  };
  const done = (isGood) => {
    isAsking = false;
    failures = isGood ? 0 : failures + 1;
    if (isGood) lastGood = performance.now();
    show();
    later(isGood ? PERIOD_MS : BACKOFF_MS[Math.min(failures, BACKOFF_MS.length) - 1]);
  };

  region.addEventListener("htmx:finally:request", (event) => {
    const status = event.detail.ctx.response?.status ?? 0;
    done(status >= 200 && status < 300);
  });
  region.addEventListener("htmx:after:swap", () => window.penstock.localTimes(region));
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : later(0)));
  setInterval(() => { if (!document.hidden) show(); }, 1000);
  later(PERIOD_MS);
})();
