/* What the page shows, and what a reader does to it. The models are in models.js. */
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { alphabet, rungs } = data;
const WORST = 5; // nats at which the colour is darkest
const WRITTEN = 400; // characters to write on at most
const ALIKES = { "\u2018": "'", "\u2019": "'", "\u201c": "'", "\u201d": "'", '"': "'", "\u2013": "-", "\u2014": "--", "\t": " " };

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

const visible = (character) => ({ "\n": "\u21b5", " ": "\u2423" })[character] ?? character;
const percent = (p) => (p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%`);
const signed = (value) => `${value > 0 ? "+" : "\u2212"}${Math.abs(value).toFixed(2)}`;

// The models: small ones here, large ones in a worker each

class Local {
  constructor(json) {
    this.reader = new Reader(unpack(JSON.parse(json)));
  }
  read(ids, done) {
    done(ids, this.reader.read(ids));
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
  /** While one text is being read, only the last of those that come meanwhile is kept. */
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
const read = new Map(); // what each made of the text: {ids, rows}

/** The part of what a rung made of an earlier text that holds for this one too: up to where they first differ. */
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
  return state.ids.map((id, i) => i > 0 && rows[i - 1] ? -Math.log(probabilities(rows[i - 1])[id]) : undefined);
}

function mean(values) {
  const known = values.filter((value) => value !== undefined);
  return known.length && known.length === state.ids.length - 1 ? known.reduce((a, b) => a + b) / known.length : undefined;
}

let round = 0;

/** Let every model read the text: the chosen one first, then the others, a small one at a time. */
function readText() {
  const mine = ++round;
  const done = (rung) => (ids, rows) => {
    read.set(rung.name, { ids, rows });
    show(rung);
  };
  const live = rungs.filter((rung) => models.has(rung.name));
  const chosen = live.filter((rung) => rung === rungs[state.rung]);
  const queue = [...chosen, ...live.filter((rung) => rung !== rungs[state.rung])];
  const step = () => {
    const started = performance.now();
    while (mine === round && queue.length && performance.now() - started < 30) {
      const rung = queue.shift();
      models.get(rung.name).read(state.ids, done(rung));
    }
    if (mine === round && queue.length) setTimeout(step);
  };
  step();
}

// The text

/** Take over a text, without the characters that no model knows. */
function setText(typed) {
  const alike = Array.from(typed, (character) => (alphabet.includes(character) ? character : ALIKES[character] ?? character));
  const characters = alike.join("").split("");
  const unknown = [...new Set(Array.from(alike.join("")))].filter((character) => !alphabet.includes(character));
  const text = characters.filter((character) => alphabet.includes(character)).join("").slice(0, $("text").maxLength);
  $("notice").textContent = unknown.length
    ? `${unknown.slice(0, 8).map((character) => `\u201c${character}\u201d`).join(", ")} left out: the models have never seen ` +
      `it. They know A to Z, a to z, space, line break and ${alphabet.filter((c) => !/[A-Za-z\s]/.test(c)).join(" ")}`
    : "";
  if ($("text").value !== text) {
    const caret = $("text").selectionStart - (typed.length - text.length);
    $("text").value = text;
    $("text").setSelectionRange(Math.max(0, caret), Math.max(0, caret));
  }
  state.text = text;
  state.ids = Array.from(text, (character) => alphabet.indexOf(character));
  state.passage = data.passages.findIndex((passage) => passage.text === text);
  state.pin = state.hover = null;
  document.querySelectorAll("[data-passage]").forEach((button) =>
    button.setAttribute("aria-pressed", Number(button.dataset.passage) === state.passage));
  showAll();
  readText();
}

/** The text as a span for each character, and with `open` one more for what follows. */
function spans(container, open) {
  if (container.shown === state.text) return container.children;
  container.shown = state.text;
  const characters = Array.from(state.text, (character, i) => {
    const span = el("span", {}, ...(character === "\n" ? [el("i", { textContent: "\u21b5" }), "\n"] : [character]));
    span.dataset.i = i;
    return span;
  });
  const end = el("span", { className: "next", textContent: "\u00a0\u00a0" });
  end.dataset.i = state.text.length;
  container.replaceChildren(...characters, ...(open ? [end] : []));
  return container.children;
}

function tint(span, p, colour) {
  span.style.setProperty("--p", Number.isFinite(p) ? Math.min(1, Math.max(0, p)).toFixed(3) : 0);
  span.style.setProperty("--tint", colour);
}

const place = () => state.hover ?? state.pin ?? state.ids.length;

/** Make the character that the pointer, or a finger, is at the one that is looked at. */
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
  const children = spans($("reading"), true);
  lossesOf(rungs[state.rung]).forEach((loss, i) => tint(children[i], loss / WORST, "var(--surprise)"));
  if (!rungs[state.rung].live && state.passage < 0)
    for (const span of children) tint(span, 0, "var(--surprise)");
}

/** The weights with which the chosen rung attends where it predicts character i: {first, weights}, or null. */
function attentionTo(i) {
  const row = rowsOf(rungs[state.rung])[i - 1];
  if (!row?.weights.length) return null;
  const { heads } = rungs[state.rung].live, n = row.weights[0].length / heads;
  const [layer, head] = state.head.split(".").map(Number);
  const all = row.weights.flatMap((weights, l) =>
    Array.from({ length: heads }, (_, h) => state.head === "mean" || (l === layer && h === head) ? weights.subarray(h * n, h * n + n) : []));
  const chosen = all.filter((weights) => weights.length);
  return { first: row.first, weights: Array.from({ length: n }, (_, s) => chosen.reduce((sum, weights) => sum + weights[s], 0) / chosen.length) };
}

/** Everything that depends on the character that is looked at. */
function showPlace() {
  const i = place(), reading = $("reading"), attention = attentionTo(i);
  for (const [s, span] of [...spans(reading, true)].entries()) {
    span.style.setProperty("--w", (attention?.weights[s - attention.first] ?? 0).toFixed(3));
    span.classList.toggle("here", s === i);
  }
  for (const card of $("cards").children) {
    const text = card.querySelector(".text"), loss = card.losses?.[i];
    text.querySelector(".here")?.classList.remove("here");
    text.children[i]?.classList.add("here");
    card.querySelector(".value").textContent = [
      card.mean === undefined ? "" : `mean ${card.mean.toFixed(2)}`, loss === undefined ? "" : `here ${loss.toFixed(2)}`,
    ].filter(Boolean).join(", ");
  }
  showGuesses(i);
  showTableRow(i);
}

function showGuesses(i) {
  const rung = rungs[state.rung], row = rowsOf(rung)[i - 1], next = state.ids[i], reading = $("reading");
  reading.ariaValueMax = Math.max(1, state.ids.length);
  reading.ariaValueNow = i;
  const before = Array.from(state.text.slice(Math.max(0, i - 10), i), visible).join("");
  if (!row) {
    const loss = lossesOf(rung)[i];
    const words = loss !== undefined ? `It lost ${loss.toFixed(2)} nats on \u201c${visible(state.text[i])}\u201d. What else it expected is not on this page.`
      : i === 0 ? "Nothing comes before the first character, so there is nothing to guess from."
      : rung.live ? "Reading \u2026" : "This rung does not run in the page. Pick a passage to see the loss of each character.";
    $("guesses").replaceChildren(el("p", { textContent: words }));
    reading.ariaValueText = words;
    return;
  }
  const p = probabilities(row), order = [...p.keys()].sort((a, b) => p[b] - p[a]);
  const heading = el("p", {}, "After ", el("code", { textContent: before }), " it expects");
  const bars = order.slice(0, 5).map((id) => {
    const bar = el("div", { className: "bar" });
    bar.style.setProperty("--p", p[id]);
    return el("div", { className: id === next ? "guess true" : "guess" },
      el("code", { textContent: (id === next ? "\u2192 " : "") + visible(alphabet[id]) }), el("div", {}, bar),
      el("span", { className: "value", textContent: percent(p[id]) }));
  });
  const verdict = next === undefined ? "Nothing follows yet: type it, or let the model write on, below."
    : `It was \u201c${visible(state.text[i])}\u201d: probability ${percent(p[next])}, loss ${(-Math.log(p[next])).toFixed(2)} nats, ` +
      `number ${order.indexOf(next) + 1} of its guesses.`;
  $("guesses").replaceChildren(heading, ...bars, el("p", { className: "small", textContent: verdict }));
  reading.ariaValueText = `After ${before}: ${verdict} Likeliest: ` +
    order.slice(0, 5).map((id) => `${visible(alphabet[id])} ${percent(p[id])}`).join(", ");
}

/** The accent colour as red, green and blue. */
function accent() {
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** Paint a canvas of width x height cells; value(x, y) from 0 to 1 is how much of the accent colour a cell gets. */
function paint(canvas, width, height, value) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), [red, green, blue] = accent();
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      image.data[at++] = red;
      image.data[at++] = green;
      image.data[at++] = blue;
      image.data[at++] = 255 * value(x, y);
    }
  }
  context.putImageData(image, 0, 0);
}

/** A map for every head: which character (across) attends how much to which. */
function showMaps() {
  const rung = rungs[state.rung], rows = rowsOf(rung), T = rows.length;
  document.querySelector(".attention").hidden = !rung.live?.layers;
  if (!rung.live?.layers || !T) return $("maps").replaceChildren();
  const { layers, heads, block_size } = rung.live, banded = block_size <= 16;
  $("attention-note").textContent = banded
    ? `Each column is a character of the text. Its ${block_size} cells are the ${block_size} characters that the model sees there, the ` +
      "nearest one at the bottom. The darker, the larger the weight."
    : "Each row is a character that attends, each column one that it attends to. The darker, the larger the weight. Nothing is right of the diagonal: no character sees a later one.";
  $("maps").className = banded ? "banded" : "";
  const names = Array.from({ length: layers * heads }, (_, k) => [Math.floor(k / heads), k % heads]);
  if ($("maps").of !== rung.name || !$("maps").children.length) {
    $("maps").of = rung.name;
    $("maps").replaceChildren(...names.map(([layer, head]) => {
      const canvas = el("canvas");
      const button = el("button", { type: "button", onclick: () => chooseHead(`${layer}.${head}`) }, canvas, headName(rung, layer, head));
      canvas.addEventListener("pointermove", (event) => {
        const across = event.offsetX / canvas.clientWidth, down = event.offsetY / canvas.clientHeight;
        move({ hover: 1 + Math.floor((banded ? across : down) * canvas.across) });
      });
      canvas.addEventListener("pointerleave", () => move({ hover: null }));
      return button;
    }));
  }
  names.forEach(([layer, head], k) => {
    const weight = (query, key) => {
      const { first, weights } = rows[query], n = weights[layer].length / heads;
      return key >= first && key <= query ? Math.sqrt(weights[layer][head * n + key - first]) : 0;
    };
    const button = $("maps").children[k];
    button.firstChild.across = T;
    button.setAttribute("aria-pressed", state.head === `${layer}.${head}`);
    if (banded) paint(button.firstChild, T, block_size, (x, y) => weight(x, x - (block_size - 1 - y)));
    else paint(button.firstChild, T, T, (x, y) => weight(y, x));
  });
}

const headName = (rung, layer, head) =>
  [rung.live.layers > 1 ? `block ${layer + 1}` : "", rung.live.heads > 1 ? `head ${head + 1}` : "the head"].filter(Boolean).join(", ");

function chooseHead(head) {
  state.head = $("head").value = head;
  showMaps();
  showPlace();
}

/** The bigram's probabilities: 65 rows of 65. */
function showTable() {
  const rung = rungs[state.rung];
  document.querySelector(".table").hidden = rung.name !== "bigram" || !rung.live;
  if (rung.name !== "bigram" || !rung.live) return;
  const V = alphabet.length, { data: weight } = models.get("bigram").table ??= {
    data: alphabet.map((_, id) => softmax(models.get("bigram").reader.read([id])[0].logits)),
  };
  $("table").lit = null;
  const here = place() > 0 ? state.ids[place() - 1] : -1;
  const scale = 9; // pixels of a cell
  paint($("table"), V * scale, V * scale, (x, y) => {
    const row = Math.floor(y / scale), column = Math.floor(x / scale), edge = row === here && (y % scale === 0 || y % scale === scale - 1);
    return edge ? 1 : Math.sqrt(weight[row][column]) * (here < 0 || row === here ? 1 : 0.55);
  });
}

function showTableRow(i) {
  if (rungs[state.rung].name !== "bigram" || !models.has("bigram")) return;
  showTable();
  const row = rowsOf(rungs[state.rung])[i - 1];
  if (!row) return;
  const p = probabilities(row), best = p.indexOf(Math.max(...p));
  $("table-note").textContent = `Row \u201c${visible(state.text[i - 1])}\u201d: its largest probability is that of \u201c${visible(alphabet[best])}\u201d, ${percent(p[best])}. Rows and columns: ${alphabet.map(visible).join("")}`;
}

// All rungs

function makeLadder() {
  $("bars").replaceChildren(...rungs.map((rung, number) => {
    const button = el("button", { type: "button", onclick: () => chooseRung(number) },
      el("span", { className: "number", textContent: /^\d/.test(rung.number) ? rung.number : "" }), el("span", { textContent: rung.name }),
      el("span", { className: "track" }, el("div", { className: "bar" })), el("span", { className: "value" }));
    return el("li", {}, button);
  }));
  $("cards").replaceChildren(...rungs.map((rung, number) => {
    const text = el("div", { className: "text" });
    follow(text);
    const name = el("button", { type: "button", textContent: rung.name, onclick: () => chooseRung(number) });
    return el("div", { className: "card" }, el("h3", {}, name, el("span", { className: "value" })), text);
  }));
}

/** A rung's bar and card. */
function showRung(number) {
  const rung = rungs[number], losses = lossesOf(rung), average = mean(losses), card = $("cards").children[number];
  const button = $("bars").children[number].firstChild, before = rungs.find((other) => other.name === rung.before);
  const uniform = Math.log(alphabet.length);
  button.setAttribute("aria-pressed", number === state.rung);
  button.querySelector(".value").textContent = average?.toFixed(2) ?? "\u2013";
  button.querySelector(".bar").style.setProperty("--p", Math.min(1, (average ?? 0) / uniform));
  card.classList.toggle("chosen", number === state.rung);
  card.hidden = !losses.length;
  Object.assign(card, { losses, mean: average });
  const children = spans(card.querySelector(".text"), false), others = state.mode === "gain" && before ? lossesOf(before) : null;
  losses.forEach((loss, i) => {
    if (state.mode === "loss") return tint(children[i], loss / WORST, "var(--surprise)");
    const change = others ? loss - others[i] : 0;
    tint(children[i], Math.abs(change) / 2, change > 0 ? "var(--surprise)" : "var(--better)");
  });
}

// What changed, and what is shown anew

function show(rung) {
  const number = rungs.indexOf(rung);
  rungs.forEach((other, k) => (k === number || other.before === rung.name) && showRung(k));
  if (number === state.rung) {
    showReading();
    showMaps();
  }
  showPlace();
}

function showAll() {
  rungs.forEach((_, number) => showRung(number));
  showReading();
  showMaps();
  showTable();
  showPlace();
}

function chooseRung(number) {
  state.rung = Math.min(rungs.length - 1, Math.max(0, number));
  const rung = rungs[state.rung];
  $("rung").value = state.rung;
  $("rung").ariaValueText = `${rung.number}, ${rung.name}: ${rung.title}`;
  $("rung-title").replaceChildren(el("strong", { textContent: `${rung.number} ${rung.name}` }), ` ${rung.title}`);
  document.querySelectorAll(".rung-name").forEach((span) => (span.textContent = rung.name));
  document.querySelectorAll("article").forEach((article) => (article.hidden = article.id !== rung.name));
  $("live").hidden = !rung.live;
  if (rung.live) {
    const { layers, heads } = rung.live;
    const options = Array.from({ length: layers * heads }, (_, k) => [Math.floor(k / heads), k % heads]);
    if (!options.some(([layer, head]) => state.head === `${layer}.${head}`)) state.head = "mean";
    $("head").replaceChildren(el("option", { value: "mean", textContent: "the mean of all heads" }),
      ...options.map(([layer, head]) => el("option", { value: `${layer}.${head}`, textContent: headName(rung, layer, head) })));
    $("head").value = state.head;
  }
  writing = null;
  $("written").textContent = "";
  history.replaceState(null, "", `#rung=${rung.name}`);
  showAll();
}

// Writing on

let writing = null;

async function write() {
  const mine = (writing = {}), model = models.get(rungs[state.rung].name), pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 25;
  const ids = place() > 0 ? state.ids.slice(0, place()) : [Math.max(0, alphabet.indexOf("\n"))];
  const written = document.createTextNode("");
  $("written").replaceChildren(el("span", { textContent: state.text.slice(0, place()) }), written);
  $("write").textContent = "Stop";
  await model.write({ ids, temperature: Number($("temperature").value), topK: Number($("top-k").value), seed: Number($("seed").value) });
  for (let k = 0; k < WRITTEN && writing === mine; k++) {
    const id = await model.next();
    if (writing !== mine) break;
    written.data += alphabet[id];
    $("written").scrollTop = $("written").scrollHeight;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  if (writing === mine || writing === null) {
    writing = null;
    $("write").textContent = "Write on";
  }
}

// The start

function start() {
  for (const script of document.querySelectorAll("script.model")) {
    const rung = rungs.find((each) => each.name === script.dataset.rung);
    models.set(rung.name, new (rung.live.large ? Remote : Local)(script.textContent));
  }
  makeLadder();
  follow($("reading"));
  $("reading").addEventListener("keydown", (event) => {
    const to = { ArrowLeft: place() - 1, ArrowRight: place() + 1, Home: 0, End: state.ids.length }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move({ pin: Math.min(state.ids.length, Math.max(0, to)), hover: null });
  });
  $("text").addEventListener("input", () => setText($("text").value));
  document.querySelectorAll("[data-passage]").forEach((button) =>
    button.addEventListener("click", () => setText(data.passages[button.dataset.passage].text)));
  $("rung").addEventListener("input", () => chooseRung(Number($("rung").value)));
  $("down").addEventListener("click", () => chooseRung(state.rung - 1));
  $("up").addEventListener("click", () => chooseRung(state.rung + 1));
  $("head").addEventListener("change", () => chooseHead($("head").value));
  $("mode").addEventListener("change", () => {
    state.mode = $("mode").value;
    document.querySelector(".legend.gain").hidden = state.mode === "loss";
    rungs.forEach((_, number) => showRung(number));
  });
  $("temperature").addEventListener("input", () => (document.querySelector("output").textContent = Number($("temperature").value).toFixed(1)));
  $("write").addEventListener("click", () => (writing ? (writing = null) : write()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showAll);
  const named = rungs.findIndex((rung) => `#rung=${rung.name}` === location.hash);
  chooseRung(named >= 0 ? named : Math.max(0, rungs.findLastIndex((rung) => rung.live && !rung.live.large)));
  setText(data.passages[0].text);
}

start();
