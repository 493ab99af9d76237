/* Behaviour shared by all pages: theme, menu, local times, tabs, copying. */
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const isDark = () => {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const toggleTheme = () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("penstock.theme", theme); } catch { /* kept for this page only */ }
    document.dispatchEvent(new Event("penstock:theme"));
  };

  const forms = {
    time: { hour: "2-digit", minute: "2-digit" },
    seconds: { hour: "2-digit", minute: "2-digit", second: "2-digit" },
    day: { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" },
    date: { day: "2-digit", month: "short", year: "numeric" },
    stamp: { day: "2-digit", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" },
  };
  const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
  const zoneName = (at) => zone.formatToParts(at).find((part) => part.type === "timeZoneName").value;
  /* A day without its year is one of this year. */
  const formOf = (name, at) => (name === "day" && at.getFullYear() !== new Date().getFullYear() ? { ...forms.day, year: "numeric" } : forms[name]);
  const localTimes = (root = document) => {
    for (const element of all("time[data-local]", root)) {
      const at = new Date(element.dateTime);
      const text = at.toLocaleString("en-GB", { ...formOf(element.dataset.local, at), hour12: false }).replace(",", "");
      if (element.textContent !== text) element.textContent = text;
      const full = `${at.toLocaleString("en-GB")} ${zoneName(at)}`;
      if (element.title !== full) element.title = full;
    }
  };

  /* A field for a moment (data-utc) names UTC to the server, and the viewer's own zone to the viewer. */
  const local = (at) => new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
  const momentField = (input) => {
    const unit = document.querySelector(`label[for="${input.id}"] .u`);
    const tell = () => { unit.textContent = zoneName(input.value ? new Date(input.value) : new Date()); };
    if (input.value) input.value = local(new Date(`${input.value}Z`));
    input.addEventListener("change", tell);
    input.form.addEventListener("formdata", (event) => {
      if (input.value) event.formData.set(input.name, new Date(input.value).toISOString().slice(0, 16));
    });
    tell();
  };

  const say = (button, word) => {
    const before = button.dataset.label ?? (button.dataset.label = button.textContent);
    if (button.classList.contains("icon")) { button.title = word; return; }
    button.textContent = word;
    setTimeout(() => { button.textContent = before; }, 1600);
  };
  const copy = async (button, text) => {
    try { await navigator.clipboard.writeText(text); say(button, "Copied"); }
    catch { say(button, "Select and copy"); }
  };

  const tabs = (list) => {
    const own = all("[role=tab]", list);
    const pick = (chosen) => {
      for (const tab of own) {
        const isOn = tab === chosen;
        tab.setAttribute("aria-selected", isOn);
        tab.tabIndex = isOn ? 0 : -1;
        document.getElementById(tab.getAttribute("aria-controls")).hidden = !isOn;
      }
    };
    own.forEach((tab, index) => {
      tab.addEventListener("click", () => pick(tab));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = own[(index + step + own.length) % own.length];
        pick(next);
        next.focus();
      });
    });
  };

  const menu = document.querySelector("[data-menu]");
  const nav = document.getElementById("nav");
  const setMenu = (isOpen) => {
    nav.classList.toggle("open", isOpen);
    menu.setAttribute("aria-expanded", isOpen);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.hasAttribute("data-theme-toggle")) toggleTheme();
    else if (button?.hasAttribute("data-menu")) setMenu(!nav.classList.contains("open"));
    else if (button?.hasAttribute("data-print")) window.print();
    else if (button?.hasAttribute("data-copy")) copy(button, document.getElementById(button.dataset.copy).textContent);
    else if (button?.hasAttribute("data-copy-text")) copy(button, button.dataset.copyText);
    else if (button?.hasAttribute("data-copy-link")) copy(button, location.href);
    for (const open of all("details.menu[open]")) if (!open.contains(event.target)) open.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of all("details.menu[open]")) { open.open = false; open.querySelector("summary").focus(); }
    if (nav?.classList.contains("open")) { setMenu(false); menu.focus(); }
  });
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button && event.target.method === "post") button.setAttribute("aria-busy", "true");
  });

  all("[role=tablist]").forEach(tabs);
  /* A form that comes back with faults is looked at where the first of them stands. */
  document.querySelector("main [aria-invalid=true]")?.focus();
  localTimes();
  all("input[data-utc]").forEach(momentField);
  window.penstock = { localTimes, zoneName };
})();
