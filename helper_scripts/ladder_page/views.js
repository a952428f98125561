/* What the page shows, and what a reader does to it. The models are in models.js. */
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { alphabet, rungs } = data;
const WORST = 5; // nats at which the colour is darkest
const LONGEST = 240; // characters of a text
const WRITTEN = 400; // characters to write on at most
const ALIKES = { "\u2018": "'", "\u2019": "'", "\u201c": "'", "\u201d": "'", '"': "'", "\u2013": "-", "\u2014": "--" };

const state = {
  text: "",
  ids: [],
  passage: -1, // the number of the passage that the text is, or -1
  rung: 0, // which is chosen
  pin: null, // the character that the reader marked; null is what follows the text
  hover: null, // the one that the pointer is at
  head: "mean", // whose weights are marked on the text: "mean", or layer and head
  mode: "loss", // the colour of the side-by-side view
};

/** An element with properties and children. */
function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Set a style, unless it is set already: most of them stay as they are. */
function style(element, name, value) {
  const styles = (element.styles ??= {});
  if (styles[name] !== value) element.style.setProperty(name, (styles[name] = value));
}

const visible = (character) => ({ "\n": "\u21b5", " ": "\u2423" })[character] ?? character;
const percent = (p) => (p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%`);

// The models: small ones here, large ones in a worker each

class Local {
  constructor(json) {
    this.reader = new Reader(unpack(JSON.parse(json)));
  }
  read(ids) {
    return this.reader.read(ids);
  }
  async write(given) {
    this.text = writeOn(this.reader, given.ids, given);
  }
  async next() {
    return this.text.next().value;
  }
}

class Remote {
  constructor(json) {
    const source = new Blob([$("models").textContent, "serve();"], { type: "text/javascript" });
    this.worker = new Worker(URL.createObjectURL(source));
    this.waiting = []; // who gets the next answers
    this.worker.onmessage = ({ data: answer }) => this.waiting.shift()(answer);
    this.ask("load", json);
  }
  ask(...task) {
    this.worker.postMessage(task);
    return new Promise((resolve) => this.waiting.push(resolve));
  }
  /** While one text is being read, only the latest of the texts that arrive is kept. */
  async read(ids, done) {
    this.latest = ids;
    if (this.busy) return;
    this.busy = true;
    for (let asked = null; asked !== this.latest; ) {
      asked = this.latest;
      done(asked, await this.ask("read", asked));
    }
    this.busy = false;
  }
  write(given) {
    return this.ask("write", given);
  }
  next() {
    return this.ask("next");
  }
}

const models = new Map(); // by the name of the rung
const read = new Map(); // what each computed for a text: {ids, rows}

/** The rows of a rung's earlier text that hold for this text too: up to where the texts first differ. */
function rowsOf(rung) {
  const { ids, rows } = read.get(rung.name) ?? { ids: [], rows: [] };
  let same = 0;
  while (same < rows.length && ids[same] === state.ids[same]) same++;
  return rows.slice(0, same);
}

const probabilities = (row) => (row.probabilities ??= softmax(row.logits));

/** The loss of each character of the text in nats; undefined where it is not known, as of the first. */
function lossesOf(rung) {
  if (!rung.live) return state.passage < 0 ? [] : [undefined, ...rung.losses[state.passage]];
  const rows = rowsOf(rung);
  return state.ids.map((id, i) => (rows[i - 1] ? -Math.log(probabilities(rows[i - 1])[id]) : undefined));
}

/** The mean loss of the text; undefined until all of it is known. */
function mean(losses) {
  const known = losses.filter((loss) => loss !== undefined);
  const complete = known.length > 0 && known.length === state.ids.length - 1;
  return complete ? known.reduce((a, b) => a + b) / known.length : undefined;
}

let round = 0; // counts the texts
const isSmall = ({ live }) => live && !live.large;

/** Let every model read the text: the workers meanwhile, the small ones here for some 30 ms before each drawing. */
function readText() {
  const mine = ++round, { ids } = state, chosen = rungs[state.rung];
  const queue = [chosen, ...rungs.filter((rung) => rung !== chosen)].filter(isSmall);
  const step = () => {
    if (mine !== round) return; // another text has come
    for (const started = performance.now(); queue.length && performance.now() - started < 30; ) {
      const { name } = queue.shift();
      read.set(name, { ids, rows: models.get(name).read(ids) });
    }
    showAll();
    if (queue.length) setTimeout(step);
  };
  const take = (name) => (ids, rows) => {
    read.set(name, { ids, rows });
    showAll();
  };
  for (const [name, model] of models) if (model instanceof Remote) model.read(ids, take(name));
  step();
}

const idsOf = (text) => Array.from(text, (character) => alphabet.indexOf(character));

/** Let the small models read the passages before one is picked, bit by bit: they keep what they have read. */
function readAhead() {
  const steps = data.passages.flatMap(({ text }) => rungs.filter(isSmall).map(({ name }) => [name, idsOf(text)]));
  steps.forEach(([name, ids], k) => setTimeout(() => models.get(name).read(ids), 1000 + 100 * k));
}

// The text

const known = (character) => alphabet.includes(character);
const withAlikes = (typed) => Array.from(typed).flatMap((each) => (known(each) ? each : Array.from(ALIKES[each] ?? each)));

/** Take over a text, without the characters that no model knows. */
function setText(typed) {
  const characters = withAlikes(typed);
  const unknown = [...new Set(characters)].filter((character) => !known(character));
  const kept = characters.filter(known), text = kept.slice(0, LONGEST).join("");
  const quoted = unknown.slice(0, 8).map((character) => `\u201c${character}\u201d`).join(", ");
  const signs = alphabet.filter((character) => !/[A-Za-z\s]/.test(character)).join(" ");
  const notices = [];
  if (kept.length > LONGEST) notices.push(`Only the first ${LONGEST} characters are kept.`);
  if (unknown.length) notices.push(`${quoted} left out: no model has seen ${unknown.length > 1 ? "them" : "it"}. ` +
    `The models know A to Z, a to z, space, line break and ${signs}`);
  $("notice").textContent = notices.join(" ");
  if ($("text").value !== text) {
    const before = withAlikes(typed.slice(0, $("text").selectionStart)).filter(known).length;
    const caret = Math.min(text.length, before);
    $("text").value = text;
    $("text").setSelectionRange(caret, caret);
  }
  const passage = data.passages.findIndex((each) => each.text === text);
  Object.assign(state, { text, ids: idsOf(text), passage, pin: null, hover: null });
  for (const button of document.querySelectorAll("[data-passage]"))
    button.setAttribute("aria-pressed", Number(button.dataset.passage) === passage);
  readText();
}

/** The text as a span for each character, and with `open` one more for what follows. What is there already stays. */
function spans(container, open) {
  const shown = container.shown ?? "";
  if (container.shown === state.text) return container.children;
  container.shown = state.text;
  let same = 0;
  while (same < shown.length && shown[same] === state.text[same]) same++;
  while (container.children.length > same) container.lastChild.remove();
  const characters = Array.from(state.text).slice(same);
  for (const character of open ? [...characters, null] : characters) {
    const content = character === "\n" ? [el("i", { textContent: "\u21b5" }), "\n"] : [character ?? "\u00a0\u00a0"];
    const span = el("span", { className: character === null ? "next" : "" }, ...content);
    span.dataset.i = container.children.length;
    container.append(span);
  }
  return container.children;
}

/** Colour a character, by p from 0 to 1; not at all where p is not known. */
function tint(span, p, colour) {
  const share = Number.isFinite(p) ? (100 * Math.min(1, p)).toFixed(1) : 0;
  style(span, "background", `color-mix(in srgb, ${colour} ${share}%, transparent)`);
}

/** The number of the character that the page tells about. */
const place = () => state.hover ?? state.pin ?? state.ids.length;

/** Tell about the character under the pointer or finger. */
function follow(container) {
  const at = (event) => event.target.closest("[data-i]")?.dataset.i;
  container.addEventListener("pointermove", (event) => at(event) && move({ hover: Number(at(event)) }));
  container.addEventListener("pointerleave", () => move({ hover: null }));
  container.addEventListener("click", (event) => at(event) && move({ pin: Number(at(event)), hover: null }));
}

function move(to) {
  Object.assign(state, to);
  showPlace();
}

// The chosen rung

function showReading() {
  const losses = lossesOf(rungs[state.rung]);
  [...spans($("reading"), true)].forEach((span, i) => tint(span, losses[i] / WORST, "var(--surprise)"));
}

/** The weights with which the chosen rung attends where it predicts character i, of the last ones before it; or null. */
function attentionTo(i) {
  const row = rowsOf(rungs[state.rung])[i - 1];
  if (!row?.weights.length) return null;
  const heads = rungs[state.rung].live.heads, n = row.weights[0].length / heads;
  const chosen = row.weights.flatMap((weights, layer) => Array.from({ length: heads }, (_, head) =>
    ["mean", `${layer}.${head}`].includes(state.head) ? [weights.subarray(head * n, (head + 1) * n)] : []).flat());
  return Array.from({ length: n }, (_, s) => chosen.reduce((sum, each) => sum + each[s], 0) / chosen.length);
}

/** Everything that depends on this character. */
function showPlace() {
  const i = place(), reading = $("reading"), weights = attentionTo(i) ?? [];
  for (const [s, span] of [...spans(reading, true)].entries()) {
    const weight = weights[s - (i - weights.length)] ?? 0;
    style(span, "--w", Math.sqrt(weight).toFixed(3)); // as on the maps
    span.classList.toggle("here", s === i);
  }
  for (const card of $("cards").children) {
    if (card.hidden) continue;
    const text = card.querySelector(".text"), here = card.values?.[i], words = [];
    text.querySelector(".here")?.classList.remove("here");
    text.children[i]?.classList.add("here");
    if (card.mean !== undefined) words.push(`mean${state.mode === "gain" ? " loss" : ""} ${card.mean.toFixed(2)}`);
    if (Number.isFinite(here)) words.push(`here ${state.mode === "gain" && here > 0 ? "+" : ""}${here.toFixed(2)}`);
    card.querySelector(".value").textContent = words.join(", ");
  }
  showGuesses(i);
  showTable(i);
}

/** What was expected in place of character i, in bars, and in words for a screen reader too. */
function showGuesses(i) {
  const rung = rungs[state.rung], row = rowsOf(rung)[i - 1], next = state.ids[i], reading = $("reading");
  const before = Array.from(state.text.slice(Math.max(0, i - 10), i), visible).join("");
  reading.ariaValueMax = Math.max(1, state.ids.length);
  reading.ariaValueNow = i;
  if (!row) {
    const loss = lossesOf(rung)[i];
    reading.ariaValueText =
      i === 0 ? "Nothing comes before the first character, so there is nothing to predict from."
      : rung.live ? "Reading \u2026"
      : loss === undefined ? "This rung does not run in the page. Pick a passage to see the loss of each character."
      : `Its loss on \u201c${visible(state.text[i])}\u201d is ${loss.toFixed(2)} nats.`;
    return $("guesses").replaceChildren(el("p", { textContent: reading.ariaValueText }));
  }
  const p = probabilities(row), order = [...p.keys()].sort((a, b) => p[b] - p[a]);
  const bars = order.slice(0, 5).map((id) => {
    const bar = el("div", { className: "bar" }), name = (id === next ? "\u2192 " : "") + visible(alphabet[id]);
    bar.style.setProperty("--p", p[id]);
    return el("div", { className: id === next ? "guess true" : "guess" }, el("code", { textContent: name }),
      el("div", {}, bar), el("span", { className: "value", textContent: percent(p[id]) }));
  });
  const verdict = next === undefined
    ? "Nothing follows yet: type more, or let the model continue, below."
    : `It was \u201c${visible(state.text[i])}\u201d: probability ${percent(p[next])}, ` +
      `loss ${(-Math.log(p[next])).toFixed(2)} nats, rank ${order.indexOf(next) + 1} of ${p.length}.`;
  $("guesses").replaceChildren(el("p", {}, "After ", el("code", { textContent: before }), " it expects"), ...bars,
    el("p", { className: "small", textContent: verdict }));
  const likeliest = order.slice(0, 5).map((id) => `${visible(alphabet[id])} ${percent(p[id])}`).join(", ");
  reading.ariaValueText = `After ${before}: ${verdict} Likeliest: ${likeliest}`;
}

let accent; // the accent colour, found anew when light turns dark

/** Paint a canvas of width x height cells; value(x, y) from 0 to 1 is how much of the accent colour a cell gets. */
function paint(canvas, width, height, value) {
  accent ??= getComputedStyle(document.documentElement).getPropertyValue("--accent").trim().slice(1);
  const [red, green, blue] = accent.match(/../g).map((hex) => parseInt(hex, 16));
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), pixels = image.data;
  for (let k = 0; k < width * height; k++) {
    pixels[4 * k] = red;
    pixels[4 * k + 1] = green;
    pixels[4 * k + 2] = blue;
    pixels[4 * k + 3] = 255 * value(k % width, Math.floor(k / width));
  }
  context.putImageData(image, 0, 0);
}

const BANDED = "Each column is a character of the text. Its cells are the characters that the model sees there, the " +
  "nearest one at the bottom. The stronger the colour, the larger the weight.";
const SQUARE = "Each row is a character that attends, each column one that it attends to. The stronger the colour, " +
  "the larger the weight. Nothing is right of the diagonal: no character sees a later one.";

const headsOf = ({ live }) =>
  Array.from({ length: live.layers * live.heads }, (_, k) => [Math.floor(k / live.heads), k % live.heads]);

/** A map for every head: which character attends how much to which. */
function showMaps() {
  const rung = rungs[state.rung], rows = rowsOf(rung), T = rows.length, maps = $("maps");
  document.querySelectorAll(".attention").forEach((part) => (part.hidden = !rung.live?.layers));
  if (!rung.live?.layers) return maps.replaceChildren();
  const { heads, block_size } = rung.live, banded = block_size <= 16;
  $("attention-note").textContent = banded ? BANDED : SQUARE;
  maps.className = banded ? "banded" : "";
  if (maps.of !== rung.name || !maps.children.length) {
    Object.assign(maps, { of: rung.name, rows: [] });
    maps.replaceChildren(...headsOf(rung).map(([layer, head]) => makeMap(rung, layer, head, banded)));
  }
  const isPainted = maps.rows.length === T && rows.every((row, t) => row === maps.rows[t]);
  maps.rows = rows;
  headsOf(rung).forEach(([layer, head], k) => {
    const weight = (query, key) => {
      const weights = rows[query].weights[layer], n = weights.length / heads, first = query + 1 - n;
      return key >= first && key <= query ? Math.sqrt(weights[head * n + key - first]) : 0;
    };
    const button = maps.children[k];
    button.setAttribute("aria-pressed", state.head === `${layer}.${head}`);
    if (isPainted) return;
    const cells = Math.max(1, T); // before a text is read, an empty map, so that nothing moves when it is
    if (banded) paint(button.firstChild, cells, block_size, (x, y) => (T ? weight(x, x - (block_size - 1 - y)) : 0));
    else paint(button.firstChild, cells, cells, (x, y) => (T ? weight(y, x) : 0));
  });
}

/** A button that marks a head's weights on the text, with the canvas of its map, which can be pointed at. */
function makeMap(rung, layer, head, banded) {
  const canvas = el("canvas"), onclick = () => chooseHead(`${layer}.${head}`);
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
    const share = banded ? offsetX / canvas.clientWidth : offsetY / canvas.clientHeight;
    move({ hover: Math.min(canvas.width, 1 + Math.floor(share * canvas.width)) });
  });
  canvas.addEventListener("pointerleave", () => move({ hover: null }));
  return el("button", { type: "button", onclick }, canvas, headName(rung, layer, head));
}

function headName({ live }, layer, head) {
  const block = live.layers > 1 ? `block ${layer + 1}, ` : "";
  return block + (live.heads > 1 ? `head ${head + 1}` : "the head");
}

function chooseHead(head) {
  state.head = $("head").value = head;
  showMaps();
  showPlace();
}

/** The bigram's probabilities, a row for each character; the row of the one before number i is framed. */
function showTable(i) {
  const rung = rungs[state.rung], shown = rung.name === "bigram" && rung.live;
  document.querySelector(".table").hidden = !shown;
  if (!shown) return;
  const { reader } = models.get("bigram"), V = alphabet.length, here = state.ids[i - 1];
  const table = (reader.table ??= alphabet.map((_, id) => softmax(reader.read([id])[0].logits)));
  paint($("table"), V, V, (x, y) => Math.sqrt(table[y][x]));
  $("table-row").hidden = here === undefined;
  style($("table-row"), "top", `${(100 * here) / V}%`);
  style($("table-row"), "height", `${100 / V}%`);
  const order = `Rows and columns, in order: ${alphabet.map(visible).join("")}.`;
  if (here === undefined) return ($("table-note").textContent = order);
  const best = table[here].indexOf(Math.max(...table[here]));
  $("table-note").textContent = `In row \u201c${visible(alphabet[here])}\u201d the likeliest is ` +
    `\u201c${visible(alphabet[best])}\u201d: ${percent(table[here][best])}. ${order}`;
}

// All rungs

/** Its place on the ladder; nothing for a rung beside it. */
const numberOf = (rung) => (/^\d/.test(rung.number) ? rung.number : "");

/** Its name; with the preset of the model that runs here, where that is not the one of its curve. */
function nameOf(rung) {
  const preset = rung.live?.preset;
  return preset && rung.flags !== `--preset ${preset}` ? `${rung.name} (${preset})` : rung.name;
}

function makeLadder() {
  $("bars").replaceChildren(...rungs.map((rung, number) => {
    const part = (className, ...children) => el("span", { className }, ...children);
    const bar = part("track", el("div", { className: "bar" }));
    const button = el("button", { type: "button", onclick: () => chooseRung(number) },
      part("number", numberOf(rung)), part("name", nameOf(rung)), bar, part("value"));
    button.dataset.rung = rung.name;
    return el("li", {}, button);
  }));
  $("cards").replaceChildren(...rungs.map((rung, number) => {
    const text = el("div", { className: "text" });
    follow(text);
    const onclick = () => chooseRung(number), name = `${numberOf(rung)} ${nameOf(rung)}`;
    const button = el("button", { type: "button", onclick }, name);
    return el("div", { className: "card" }, el("h3", {}, button, el("span", { className: "value" })), text);
  }));
}

/** A rung's bar and card. */
function showRung(number) {
  const rung = rungs[number], losses = lossesOf(rung), average = mean(losses), chosen = number === state.rung;
  const button = $("bars").children[number].firstChild, card = $("cards").children[number];
  button.setAttribute("aria-pressed", chosen);
  button.querySelector(".value").textContent = average?.toFixed(2) ?? "\u2013";
  button.querySelector(".bar").style.setProperty("--p", Math.min(1, (average ?? 0) / Math.log(alphabet.length)));
  card.classList.toggle("chosen", chosen);
  card.hidden = !losses.length;
  const before = rungs.find((other) => other.name === rung.before), others = before ? lossesOf(before) : [];
  const gain = state.mode === "gain", values = gain ? losses.map((loss, i) => loss - others[i]) : losses;
  Object.assign(card, { values, mean: average });
  if (card.hidden) return;
  [...spans(card.querySelector(".text"), false)].forEach((span, i) =>
    tint(span, Math.abs(values[i]) / (gain ? 2 : WORST), values[i] > 0 ? "var(--surprise)" : "var(--better)"));
}

// What is shown anew

function showAll() {
  rungs.forEach((_, number) => showRung(number));
  showReading();
  showMaps();
  showPlace();
}

const article = () => document.querySelector("article:not([hidden])");

function chooseRung(number) {
  const top = article().getBoundingClientRect().top;
  state.rung = Math.min(rungs.length - 1, Math.max(0, number));
  const rung = rungs[state.rung];
  $("rung").value = state.rung;
  $("rung").ariaValueText = `${rung.number}, ${rung.name}: ${rung.title}`;
  const name = `${numberOf(rung) ? "Rung " : ""}${rung.number} ${rung.name}`;
  $("rung-title").replaceChildren(el("strong", { textContent: name }), ` ${rung.title}`);
  document.querySelectorAll(".rung-name").forEach((span) => (span.textContent = rung.name));
  document.querySelectorAll("article").forEach((article) => (article.hidden = article.id !== rung.name));
  $("live").hidden = !rung.live;
  const heads = rung.live ? headsOf(rung) : [];
  if (!heads.some(([layer, head]) => state.head === `${layer}.${head}`)) state.head = "mean";
  $("head").replaceChildren(el("option", { value: "mean", textContent: "the mean of all heads" }), ...heads.map(
    ([layer, head]) => el("option", { value: `${layer}.${head}`, textContent: headName(rung, layer, head) })));
  $("head").value = state.head;
  writing = null;
  $("written").textContent = "";
  showAll();
  history.replaceState(null, "", `#rung=${rung.name}`);
  // who reads the rung's text goes on there, although the parts above it have another height now
  if (top < innerHeight / 2) scrollBy(0, article().getBoundingClientRect().top - Math.max(top, 96));
}

// Writing on

let writing = null;

async function write() {
  const mine = (writing = {}), model = models.get(rungs[state.rung].name), end = place();
  const pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 25;
  const [temperature, topK, seed] = ["temperature", "top-k", "seed"].map((id) => Number($(id).value));
  const ids = end > 0 ? state.ids.slice(0, end) : [Math.max(0, alphabet.indexOf("\n"))];
  const written = document.createTextNode("");
  $("written").replaceChildren(el("span", { textContent: state.text.slice(0, end) }), written);
  $("write").textContent = "Stop";
  await model.write({ ids, temperature, topK, seed });
  for (let k = 0; k < WRITTEN && writing === mine; k++) {
    const id = await model.next();
    if (writing !== mine) break;
    written.data += alphabet[id];
    $("written").scrollTop = $("written").scrollHeight;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  if (writing && writing !== mine) return; // another text has begun
  writing = null;
  $("write").textContent = "Continue";
}

// The start

function start() {
  for (const script of document.querySelectorAll("script.model")) {
    const rung = rungs.find((each) => each.name === script.dataset.rung);
    models.set(rung.name, new (rung.live.large ? Remote : Local)(script.textContent));
  }
  for (const part of document.querySelectorAll(".climb, main > section")) part.hidden = false; // for those with JavaScript
  makeLadder();
  follow($("reading"));
  $("reading").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
    const [back, on] = [place() - 1, place() + 1];
    const to = { ArrowLeft: back, ArrowDown: back, ArrowRight: on, ArrowUp: on, Home: 0, End: state.ids.length }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move({ pin: Math.min(state.ids.length, Math.max(0, to)), hover: null });
  });
  $("text").addEventListener("input", () => setText($("text").value));
  for (const button of document.querySelectorAll("[data-passage]"))
    button.addEventListener("click", () => setText(data.passages[button.dataset.passage].text));
  $("rung").addEventListener("input", () => chooseRung(Number($("rung").value)));
  $("down").addEventListener("click", () => chooseRung(state.rung - 1));
  $("up").addEventListener("click", () => chooseRung(state.rung + 1));
  $("head").addEventListener("change", () => chooseHead($("head").value));
  $("mode").addEventListener("change", () => {
    state.mode = $("mode").value;
    document.querySelector(".legend.gain").hidden = state.mode === "loss";
    showAll();
  });
  $("temperature").addEventListener("input", () => {
    document.querySelector("output").textContent = Number($("temperature").value).toFixed(1);
  });
  $("write").addEventListener("click", () => (writing ? (writing = null) : write()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    accent = null;
    $("maps").replaceChildren();
    showAll();
  });
  const named = () => rungs.findIndex((rung) => `#rung=${rung.name}` === location.hash);
  addEventListener("hashchange", () => named() >= 0 && chooseRung(named()));
  const first = rungs.findLastIndex(isSmall); // the best of those that answer at once
  chooseRung(named() >= 0 ? named() : Math.max(0, first));
  setText(data.passages[0].text);
  readAhead();
}

start();
