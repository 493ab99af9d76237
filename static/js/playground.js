/* The playground: one conversation over a websocket, with reconnect. What is said stays in this page alone. */
(() => {
  const root = document.querySelector("[data-playground]");
  if (!root) return;
  const one = (name, from = root) => from.querySelector(`[data-${name}]`);
  const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15000], FINAL = [4401, 4403, 4429];
  const log = one("log"), form = one("form"), message = one("message"), model = one("model"), error = one("error"), empty = one("empty");
  const link = document.querySelector("[data-link]"), clear = document.querySelector("[data-clear]");
  const exchanges = [];
  let images = [], socket = null, failures = 0, isOpen = false, isOver = false, current = null, nextId = 1;

  const number = (value) => value.toLocaleString("en-GB", { maximumFractionDigits: Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0 });
  const units = (value) => value.toLocaleString("en-GB", { maximumSignificantDigits: 3 });
  const clock = () => new Date().toLocaleTimeString("en-GB");
  const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  /* ---- the connection */
  const showLink = () => {
    link.classList.toggle("stale", !isOpen);
    set(one("live-word", link), isOpen ? "Connected" : isOver ? "Closed" : failures ? "Not connected" : "Connecting");
    const lost = one("lost");
    lost.hidden = isOpen || (!failures && !isOver);
    buttons();
  };
  /* A handshake that is refused tells a page nothing: the page itself is asked why. */
  const askWhy = async () => {
    try {
      const answer = await fetch(location.pathname, { redirect: "manual" });
      if (answer.type === "opaqueredirect") end("You are signed out. Sign in again, then reload this page.");
      else if (answer.status === 403 || answer.status === 404) end("You may not use this tenant's models any more. Ask an owner or admin.");
    } catch { /* the console is away: it is tried again */ }
  };
  const connect = () => {
    if (isOver) return;
    socket = new WebSocket(new URL(root.dataset.socket, location.href.replace(/^http/, "ws")));
    socket.addEventListener("open", () => { isOpen = true; failures = 0; showLink(); });
    socket.addEventListener("message", (event) => hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => {
      const wasOpen = isOpen;
      isOpen = false;
      if (current) fail(current, "The connection to the console was lost. What had come stays here.");
      if (FINAL.includes(event.code)) isOver = true;
      if (isOver) { showLink(); return; }
      failures += 1;
      showLink();
      if (!wasOpen && failures % 3 === 2) askWhy();
      setTimeout(connect, wasOpen ? 250 : BACKOFF_MS[Math.min(failures, BACKOFF_MS.length) - 1]);
    });
  };
  const end = (why) => {
    isOver = true;
    set(one("lost-title"), "This page cannot go on.");
    set(one("lost-why"), why);
    showLink();
  };

  /* ---- what is shown */
  const isNearEnd = () => window.innerHeight + window.scrollY > document.body.scrollHeight - 160;
  const follow = (wasNear) => { if (wasNear) window.scrollTo(0, document.body.scrollHeight); };
  const buttons = () => {
    const hasText = message.value.trim() !== "" || images.length > 0;
    one("send").disabled = !isOpen || current !== null || !hasText;
    one("send").hidden = current !== null;
    one("stop").hidden = current === null;
    clear.disabled = !exchanges.length || current !== null;
    exchanges.forEach((exchange, index) => {
      const isLast = index === exchanges.length - 1;
      exchange.box.querySelector("[data-retry]").hidden = !isLast || current !== null || !isOpen;
      exchange.box.querySelector("[data-copy-answer]").hidden = !exchange.text || exchange === current;
    });
  };
  const thumbnail = (source, remove) => {
    const item = document.createElement("li"), picture = document.createElement("img");
    picture.src = source;
    picture.alt = "Attached image";
    item.append(picture);
    if (remove) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "btn sm icon";
      button.textContent = "×";
      button.setAttribute("aria-label", "Remove the image");
      button.addEventListener("click", remove);
      item.append(button);
    }
    return item;
  };
  const showImages = () => {
    const list = one("thumbs");
    list.replaceChildren(...images.map((source, index) => thumbnail(source, () => { images.splice(index, 1); showImages(); })));
    list.hidden = !images.length;
    buttons();
  };
  const complain = (text) => { error.textContent = text; error.hidden = !text; };
  const turn = (exchange) => {
    const box = document.querySelector("[data-turn-template]").content.firstElementChild.cloneNode(true);
    box.querySelector(".who").textContent = "You";
    box.querySelector(".txt").textContent = exchange.said;
    const list = box.querySelector(".thumbs");
    list.append(...exchange.images.map((source) => thumbnail(source)));
    list.hidden = !exchange.images.length;
    return box;
  };
  const answerBox = (exchange) => {
    const box = document.querySelector("[data-answer-template]").content.firstElementChild.cloneNode(true);
    box.querySelector(".who").textContent = `${exchange.model} · ${clock()}`;
    one("retry", box).addEventListener("click", () => ask(exchange));
    one("copy-answer", box).addEventListener("click", async (event) => {
      try { await navigator.clipboard.writeText(exchange.text); event.target.textContent = "Copied"; }
      catch { event.target.textContent = "Select and copy"; }
      setTimeout(() => { event.target.textContent = "Copy"; }, 1600);
    });
    return box;
  };
  const receipt = (exchange, name, text) => set(one(name, exchange.box), text);
  const tokens = (exchange, counted) => {
    exchange.tokens = counted;
    receipt(exchange, "input", number(counted.input));
    receipt(exchange, "cached", number(counted.cached));
    receipt(exchange, "output", number(counted.output));
  };
  const sums = () => {
    const sum = (pick) => exchanges.reduce((total, exchange) => total + exchange.past.reduce((all, one) => all + pick(one), 0) + pick(exchange), 0);
    set(one("sum-answers"), number(sum((one) => (one.text || one.tokens ? 1 : 0))));
    set(one("sum-mu"), units(sum((one) => one.mu ?? 0)));
    set(one("sum-input"), number(sum((one) => one.tokens?.input ?? 0)));
    set(one("sum-output"), number(sum((one) => one.tokens?.output ?? 0)));
  };

  /* ---- one answer */
  const turns = (upTo) => {
    const told = [];
    for (const exchange of exchanges) {
      if (exchange !== upTo && !exchange.text) continue;
      told.push({ role: "user", text: exchange.said, images: exchange.images });
      if (exchange === upTo) break;
      told.push({ role: "assistant", text: exchange.text });
    }
    return told;
  };
  const ask = (exchange) => {
    const isNew = !exchange.box;
    const body = { type: "ask", id: nextId, model: model.value, turns: turns(exchange), system: one("system").value };
    if (one("temperature").value !== "") body.temperature = Number(one("temperature").value);
    if (one("max").value !== "") body.max_tokens = Math.trunc(Number(one("max").value));
    const frame = JSON.stringify(body);
    if (frame.length > Number(root.dataset.frame)) {
      complain("This conversation is too large to send: leave out images or clear it.");
      if (isNew) exchanges.pop();
      return false;
    }
    if (!isNew) {
      exchange.past.push({ mu: exchange.mu, tokens: exchange.tokens, text: exchange.text });
      exchange.box.remove();
    }
    Object.assign(exchange, { id: nextId, model: model.value, text: "", mu: null, tokens: null, began: performance.now() });
    nextId += 1;
    exchange.box = answerBox(exchange);
    empty.remove();
    if (isNew) log.append(turn(exchange));
    log.append(exchange.box);
    current = exchange;
    socket.send(frame);
    complain("");
    tick();
    buttons();
    sums();
    follow(true);
    return true;
  };
  const tick = () => {
    if (!current) return;
    receipt(current, "state", `${((performance.now() - current.began) / 1000).toFixed(1)} s`);
    setTimeout(tick, 100);
  };
  /* Fenced code stands apart; everything else stays the text that it is. */
  const render = (box, text) => {
    box.replaceChildren(...text.split(/^```[^\n]*\n([\s\S]*?)\n?^```[ \t]*$/m).map((part, index) => {
      // The block's own margin stands for the blank lines around a fence.
      if (index % 2 === 0) return part.replace(/^\n+|\n+$/g, "");
      const code = document.createElement("pre");
      code.tabIndex = 0;
      code.textContent = part;
      return code;
    }));
  };
  const over = (exchange, word) => {
    render(exchange.box.querySelector(".answer"), exchange.text.trimStart());
    exchange.box.removeAttribute("aria-busy");
    receipt(exchange, "state", word);
    if (current === exchange) current = null;
    set(one("said"), `Answer ${word || "complete"}.`);
    buttons();
    sums();
  };
  const fail = (exchange, why, wait) => {
    const call = exchange.box.querySelector(".call");
    call.querySelector("p").textContent = wait ? `${why} It may be tried again in ${number(Math.ceil(wait))} s.` : why;
    call.hidden = false;
    over(exchange, "failed");
  };
  const words = { length: "stopped at max output", content_filter: "stopped by a filter", tool_calls: "asked for a tool" };
  const hear = (told) => {
    const exchange = exchanges.find((one) => one.id === told.id);
    const wasNear = isNearEnd();
    if (told.type === "ended") end(told.message);
    else if (told.type === "rejected") {
      if (current && !current.text) fail(current, told.message);
      else complain(told.message);
    } else if (!exchange) return;
    else if (told.type === "started") started(exchange, told);
    else if (told.type === "delta") {
      exchange.text += told.text;
      if (told.thinking) {
        const box = exchange.box.querySelector(".thinking");
        box.hidden = false;
        box.querySelector(".txt").append(told.thinking);
      }
      if (told.text) exchange.box.querySelector(".answer").append(exchange.text === told.text ? told.text.trimStart() : told.text);
      receipt(exchange, "ttft", number(told.ttft_ms));
    } else if (told.type === "done") {
      if (told.tokens) tokens(exchange, told.tokens);
      if (told.ttft_ms != null) receipt(exchange, "ttft", number(told.ttft_ms));
      if (told.tokens_per_s != null) receipt(exchange, "speed", number(told.tokens_per_s));
      over(exchange, words[told.finish_reason] ?? "");
    } else if (told.type === "stopped") over(exchange, "stopped");
    else if (told.type === "failed") fail(exchange, told.message, told.retry_after_s);
    else if (told.type === "settled") settle(exchange, told);
    else if (told.type === "unsettled") receipt(exchange, "actual", "in Usage later");
    follow(wasNear && told.type === "delta");
  };
  const classed = (exchange, name) => {
    const pill = one("class", exchange.box);
    pill.hidden = !name;
    pill.className = `pill ${name === "best_effort" ? "best" : "used"}`;
    pill.textContent = name.replace("_", "-");
  };
  const replica = (exchange, id) => {
    const place = one("replica", exchange.box);
    set(place, id ? id.slice(-6) : "–");
    place.title = id;
  };
  const started = (exchange, told) => {
    classed(exchange, told.service_class);
    replica(exchange, told.replica);
    if (told.mu_estimated != null) receipt(exchange, "estimated", units(told.mu_estimated));
    const anchor = one("request", exchange.box);
    if (!told.request_id) return;
    set(anchor, told.request_id.slice(-6));
    anchor.title = told.request_id;
  };
  const settle = (exchange, told) => {
    exchange.mu = told.mu;
    receipt(exchange, "actual", units(told.mu));
    if (told.tokens.input || told.tokens.output) tokens(exchange, told.tokens);
    classed(exchange, told.service_class);
    replica(exchange, told.replica);
    const anchor = one("request", exchange.box);
    anchor.href = `${root.dataset.usage}${told.request_id ?? anchor.title}`;
    sums();
  };

  /* ---- the form */
  const take = async (files) => {
    for (const file of files) {
      if (!/^image\/(png|jpeg|webp|gif)$/.test(file.type)) { complain(`${file.name} is no PNG, JPEG, WebP or GIF image.`); continue; }
      const source = await new Promise((done) => {
        const reader = new FileReader();
        reader.addEventListener("load", () => done(String(reader.result)));
        reader.addEventListener("error", () => done(""));
        reader.readAsDataURL(file);
      });
      const isFull = images.length + exchanges.reduce((count, one) => count + one.images.length, 0) >= Number(root.dataset.images);
      if (!source) complain(`${file.name} could not be read.`);
      else if (source.length > Number(root.dataset.image)) complain(`${file.name} is larger than 4.5 MB.`);
      else if (isFull) complain(`A conversation has at most ${root.dataset.images} images.`);
      else { complain(""); images.push(source); }
    }
    showImages();
  };
  const send = () => {
    if (one("send").disabled) return;
    for (const field of [one("temperature"), one("max")]) if (!field.reportValidity()) return;
    const exchange = { said: message.value.trim(), images, text: "", past: [] };
    exchanges.push(exchange);
    if (!ask(exchange)) return;
    message.value = "";
    images = [];
    showImages();
    message.focus();
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  message.addEventListener("input", buttons);
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  message.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) { event.preventDefault(); take(files); }
  });
  one("file").addEventListener("change", async (event) => { await take([...event.target.files]); event.target.value = ""; });
  one("stop").addEventListener("click", () => { if (current && isOpen) socket.send(JSON.stringify({ type: "stop", id: current.id })); });
  for (const button of root.querySelectorAll("[data-starter]")) button.addEventListener("click", () => { message.value = button.textContent; message.focus(); buttons(); });
  clear.addEventListener("click", () => {
    exchanges.length = 0;
    log.replaceChildren(empty);
    sums();
    set(one("sum-answers"), "0");
    message.focus();
    buttons();
  });
  model.addEventListener("change", () => {
    for (const hint of root.querySelectorAll("[data-held]")) hint.hidden = hint.dataset.held !== model.value;
    one("simulated-note").hidden = !model.selectedOptions[0].hasAttribute("data-simulated");
    one("model-name", empty).textContent = model.value;
    const code = document.querySelector("[data-code]");
    code.search = new URLSearchParams({ model: model.value }).toString();
    history.replaceState(null, "", `?${new URLSearchParams({ model: model.value })}`);
  });
  sums();
  set(one("sum-answers"), "0");
  connect();
  buttons();
})();
