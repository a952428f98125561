/* The models of the ladder, function for function as in the Python files: read them side by side.

   A vector of C channels for each of T characters, (T, C), is one Float32Array of T * C numbers, row after row; there
   is no batch. `p` holds the parameters of a layer under the names that they have in Python: p.qkv.weight is the
   `self.qkv.weight` of the file. Nothing here knows of the page: the tests run this file under node. */
"use strict";

/** x (T, I) -> (T, O), nn.Linear: every row times each of the O rows of the weight matrix (O, I), plus the bias. */
function linear(x, { weight, bias }) {
  const [O, I] = weight.shape;
  const y = new Float32Array((x.length / I) * O);
  for (let row = 0, out = 0; row < x.length; row += I, out += O) {
    let o = 0;
    for (; o + 3 < O; o += 4) { // four outputs at a time, as a number that is read once then serves four sums
      const w0 = o * I, w1 = w0 + I, w2 = w1 + I, w3 = w2 + I;
      let y0 = 0, y1 = 0, y2 = 0, y3 = 0;
      for (let i = 0; i < I; i++) {
        const value = x[row + i];
        y0 += value * weight[w0 + i];
        y1 += value * weight[w1 + i];
        y2 += value * weight[w2 + i];
        y3 += value * weight[w3 + i];
      }
      y[out + o] = y0;
      y[out + o + 1] = y1;
      y[out + o + 2] = y2;
      y[out + o + 3] = y3;
    }
    for (; o < O; o++) // what is left over
      for (let i = 0; i < I; i++) y[out + o] += x[row + i] * weight[o * I + i];
    if (bias) for (o = 0; o < O; o++) y[out + o] += bias[o];
  }
  return y;
}

/** ids (T) -> (T, C), nn.Embedding: the row of each id. */
function embedding(ids, { weight }) {
  const C = weight.shape[1];
  const x = new Float32Array(ids.length * C);
  ids.forEach((id, t) => x.set(weight.subarray(id * C, (id + 1) * C), t * C));
  return x;
}

const add = (x, y) => x.map((value, i) => value + y[i]);
const relu = (x) => x.map((value) => Math.max(0, value));
const silu = (x) => x.map((value) => value / (1 + Math.exp(-value)));

/** Logits -> probabilities that sum to 1. The largest is taken off first, so that no exponential overflows. */
function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const exponentials = logits.map((logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

/** x (T, C) -> (T, C): each row gets mean 0 and variance 1, then a gain and a bias for each channel. */
function layerNorm(x, { weight, bias }) {
  const C = weight.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += C) {
    let mean = 0, variance = 0;
    for (let c = 0; c < C; c++) mean += x[start + c] / C;
    for (let c = 0; c < C; c++) variance += (x[start + c] - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let c = 0; c < C; c++) y[start + c] = (x[start + c] - mean) * scale * weight[c] + bias[c];
  }
  return y;
}

/** x (T, C) -> (T, C): each row gets a mean square of 1, then a gain for each channel. */
function rmsNorm(x, { weight }) {
  const C = weight.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += C) {
    let square = 0;
    for (let c = 0; c < C; c++) square += x[start + c] ** 2 / C;
    const scale = 1 / Math.sqrt(square + 2 ** -23); // torch's epsilon: the smallest step of fp32 above 1
    for (let c = 0; c < C; c++) y[start + c] = x[start + c] * scale * weight[c];
  }
  return y;
}

/** Rotate each pair of channels, d and d + D / 2, of a head's vector by an angle that grows with the position. */
function applyRotary(x, position) {
  const half = x.length / 2;
  const y = new Float32Array(x.length);
  for (let d = 0; d < half; d++) {
    const angle = position * 10000 ** (-d / half);
    const cos = Math.cos(angle), sin = Math.sin(angle);
    y[d] = x[d] * cos - x[d + half] * sin;
    y[d + half] = x[d] * sin + x[d + half] * cos;
  }
  return y;
}

/** Queries, keys and values of each head, as views into x (T, 3C): q[t][h] has D = C / H channels. */
function splitHeads(x, T, H) {
  const C = x.length / T / 3, D = C / H;
  const part = (n) => Array.from({ length: T }, (_, t) =>
    Array.from({ length: H }, (_, h) => x.subarray(t * 3 * C + n * C + h * D, t * 3 * C + n * C + (h + 1) * D)));
  return [part(0), part(1), part(2)];
}

/** Each query takes a weighted mean of the values up to its own position: q (T), memory of S >= T -> (T, C).

    memory: keys and values of the characters so far, and the weights of all queries so far, to be looked at. window:
    how many characters a query sees at most. */
function attend(q, memory, window) {
  const T = q.length, H = q[0].length, D = q[0][0].length, past = memory.keys.length - T;
  const out = new Float32Array(T * H * D);
  for (let t = 0; t < T; t++) {
    const first = Math.max(0, past + t + 1 - window);
    const n = past + t + 1 - first; // no later position: that is the causal mask
    const weights = new Float32Array(H * n);
    for (let h = 0; h < H; h++) {
      const scores = new Float32Array(n);
      for (let s = 0; s < n; s++) {
        const key = memory.keys[first + s][h];
        let dot = 0;
        for (let d = 0; d < D; d++) dot += q[t][h][d] * key[d];
        scores[s] = dot / Math.sqrt(D);
      }
      weights.set(softmax(scores), h * n);
      for (let s = 0; s < n; s++) {
        const value = memory.values[first + s][h], weight = weights[h * n + s];
        for (let d = 0; d < D; d++) out[(t * H + h) * D + d] += weight * value[d];
      }
    }
    memory.weights.push(weights);
  }
  return out;
}

/** Rungs 2 to 8: one head has no projection. */
function selfAttention(x, p, memory, config) {
  const H = config.n_head ?? 1, T = x.length / config.n_embd;
  const [q, k, v] = splitHeads(linear(x, p.qkv), T, H);
  memory.keys.push(...k);
  memory.values.push(...v);
  const mixed = attend(q, memory, config.block_size);
  return p.proj ? linear(mixed, p.proj) : mixed;
}

/** Rung 15: queries and keys normalised and rotated, and the first block's values mixed into every block's. */
function modernAttention(x, p, memory, config, first) {
  const H = config.n_head, T = x.length / config.n_embd, past = memory.keys.length;
  const [q, k, v] = splitHeads(linear(x, p.qkv), T, H);
  const firstValues = first ?? v;
  const [ofFirst, ofOwn] = p.value_lambdas;
  const rotated = (vectors, norm) =>
    vectors.map((heads, t) => heads.map((vector) => applyRotary(rmsNorm(vector, norm), past + t)));
  memory.keys.push(...rotated(k, p.k_norm));
  memory.values.push(...v.map((heads, t) =>
    heads.map((vector, h) => vector.map((value, d) => ofFirst * firstValues[t][h][d] + ofOwn * value))));
  return [linear(attend(rotated(q, p.q_norm), memory, config.block_size), p.proj), firstValues];
}

/** Each position by itself: (T, C) -> (T, 4C) -> (T, C). */
const feedForward = (x, p) => linear(relu(linear(x, p.net[0])), p.net[2]);

/** The same with a gate: (T, C) -> (T, 8/3 C) -> (T, C). */
function gatedFeedForward(x, p) {
  const up = linear(x, p.up);
  return linear(silu(linear(x, p.gate)).map((value, i) => value * up[i]), p.down);
}

/** Each channel becomes a weighted sum of itself and of the three characters before: (T, C) -> (T, C).

    rows: what it got for the characters so far; x is added to them. */
function shortConv(x, { conv }, rows) {
  const C = conv.weight.shape[0], past = rows.length;
  for (let start = 0; start < x.length; start += C) rows.push(x.subarray(start, start + C));
  return x.map((_, i) => {
    const t = past + Math.floor(i / C), c = i % C;
    let sum = 0;
    for (let k = 0; k < 4; k++) if (t - 3 + k >= 0) sum += conv.weight[4 * c + k] * rows[t - 3 + k][c];
    return sum;
  });
}

/* A block, and here one sees what the rungs change: communication, then computation, (T, C) -> (T, C). */
const BLOCKS = {
  feed_forward(x, p, attention) {
    x = attention(x);
    return feedForward(x, p.feed_forward);
  },
  residual(x, p, attention) {
    x = add(x, attention(x));
    return add(x, feedForward(x, p.feed_forward));
  },
  post_norm(x, p, attention) {
    x = layerNorm(add(x, attention(x)), p.norm1);
    return layerNorm(add(x, feedForward(x, p.feed_forward)), p.norm2);
  },
  pre_norm(x, p, attention) {
    x = add(x, attention(layerNorm(x, p.norm1)));
    return add(x, feedForward(layerNorm(x, p.norm2), p.feed_forward));
  },
};
BLOCKS.gpt = BLOCKS.pre_norm; // rung 8 has more of it

/** The logits of what follows each character: rung 1 is a table, the others have an architecture each.

    ids: T character ids. memory: what an earlier call of the same text left behind; it is continued. */
function forward(model, ids, memory) {
  const { rung, weights: p } = model;
  if (rung === "bigram") return embedding(ids, p.token_embedding);
  return (p.blocks?.[0].conv1 ? modern : p.blocks ? gpt : attentionAlone)(model, ids, memory);
}

/** Rungs 2 and 3: characters and positions, attention, logits. */
function attentionAlone({ config, weights: p }, ids, memory) {
  const x = withPositions(p, ids, memory);
  return linear(selfAttention(x, p.attention, memory.layers[0], config), p.lm_head);
}

/** Rungs 4 to 8: the same with blocks in place of the attention. */
function gpt({ rung, config, weights: p }, ids, memory) {
  let x = withPositions(p, ids, memory);
  p.blocks.forEach((block, layer) => {
    const attention = (input) => selfAttention(input, block.attention, memory.layers[layer], config);
    x = BLOCKS[rung](x, block, attention);
  });
  if (p.final_norm) x = layerNorm(x, p.final_norm);
  return linear(x, p.lm_head);
}

/** Rung 15. */
function modern({ config, weights: p }, ids, memory) {
  let x = embedding(ids, p.token_embedding), firstValues = null, attended;
  p.blocks.forEach((block, layer) => {
    const kept = memory.layers[layer];
    const input = shortConv(rmsNorm(x, block.norm1), block.conv1, kept.conv1);
    [attended, firstValues] = modernAttention(input, block.attention, kept, config, firstValues);
    x = add(x, attended);
    x = add(x, gatedFeedForward(shortConv(rmsNorm(x, block.norm2), block.conv2, kept.conv2), block.feed_forward));
  });
  return linear(rmsNorm(x, p.final_norm), p.lm_head);
}

function withPositions(p, ids, memory) {
  const past = memory.layers[0].keys.length;
  return add(embedding(ids, p.token_embedding), embedding(ids.map((_, t) => past + t), p.position_embedding));
}

/** What the layers keep of a text: nothing yet. Every list has an element for each character. */
function newMemory({ config }) {
  const layer = () => ({ keys: [], values: [], weights: [], conv1: [], conv2: [] });
  return { ids: [], logits: [], layers: Array.from({ length: config.n_layer ?? (config.n_embd ? 1 : 0) }, layer) };
}

/** Reads texts with one model, and computes nothing twice. */
class Reader {
  constructor(model) {
    this.model = model;
    this.seen = new Map(); // without a cache: a window's ids -> its last row; with one: a window's start -> its memory
  }

  /** What is expected after each character of ids: [{logits (V), weights: (H, n) of each layer}, ...].

      The n weights of a head are those of the last n characters. */
  read(ids) {
    if (this.model.cache) return this.readCached(ids);
    const T = this.model.config.block_size;
    return ids.map((_, t) => { // a full window moves on by one character, and everything is computed anew
      const window = ids.slice(Math.max(0, t + 1 - T), t + 1), key = window.join();
      if (this.seen.size > 10000) this.seen.clear();
      if (!this.seen.has(key)) {
        const memory = extended(newMemory(this.model), this.model, window);
        this.seen.set(key, rowOf(memory, window.length - 1));
      }
      return this.seen.get(key);
    });
  }

  /** Learned positions: a full window moves on by half its length, and what is cached of it is of no use any more.
      Rotary positions: there is one window without end, in which a query sees the last characters alone. */
  readCached(ids) {
    const T = this.model.config.block_size, hop = this.model.cache === "rotary" ? Infinity : T / 2, rows = [];
    while (rows.length < ids.length) {
      const start = hop === Infinity ? 0 : Math.ceil(Math.max(0, rows.length + 1 - T) / hop) * hop;
      const window = hop === Infinity ? ids : ids.slice(start, start + T);
      const memory = extended(this.seen.get(start) ?? newMemory(this.model), this.model, window);
      this.seen.set(start, memory);
      for (let t = rows.length - start; t < window.length; t++) rows.push(rowOf(memory, t));
    }
    return rows;
  }
}

const rowOf = (memory, t) => ({ logits: memory.logits[t], weights: memory.layers.map((layer) => layer.weights[t]) });

/** `memory`, cut back to what it has in common with the text ids, and continued by the rest of them. */
function extended(memory, model, ids) {
  let same = 0;
  while (same < ids.length && ids[same] === memory.ids[same]) same++;
  const lists = [memory.ids, memory.logits, ...memory.layers.flatMap(Object.values)];
  for (const list of lists) list.length = Math.min(list.length, same);
  if (same === ids.length) return memory;
  const logits = forward(model, ids.slice(same), memory), V = logits.length / (ids.length - same);
  for (let start = 0; start < logits.length; start += V) memory.logits.push(logits.slice(start, start + V));
  memory.ids = [...ids];
  return memory;
}

/** Numbers from 0 to 1 that a seed decides (Mulberry32). */
function* randomNumbers(seed) {
  for (let a = seed >>> 0; ; ) {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    yield ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
}

/** The ids that continue a text, one after the other, without end. Temperature 0 takes the likeliest each time. */
function* writeOn(reader, ids, { temperature, topK, seed }) {
  const numbers = randomNumbers(seed);
  for (const text = [...ids]; ; ) {
    text.push(draw(reader.read(text).at(-1).logits, temperature, topK, numbers.next().value));
    yield text.at(-1);
  }
}

/** One id: the first whose probability, added to those before it, exceeds `number`, from 0 to 1. */
function draw(logits, temperature, topK, number) {
  const least = topK > 0 && topK < logits.length ? [...logits].sort((a, b) => b - a)[topK - 1] : -Infinity;
  if (temperature === 0) return logits.indexOf(Math.max(...logits));
  const kept = Array.from(logits, (logit) => (logit < least ? -Infinity : logit / temperature));
  const probabilities = softmax(kept);
  let sum = 0, last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    sum += probabilities[id];
    if (probabilities[id] > 0) last = id;
    if (number < sum) return id;
  }
  return last; // of rounding
}

/** A model as the page has it, its weights from base64: fp32, or int8 with a scale for each row. */
function unpack({ tensors, data, ...model }) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  let at = 0;
  const floats = (n) => Float32Array.from({ length: n }, () => view.getFloat32((at += 4) - 4, true));
  const weights = {};
  for (const { name, shape, int8 } of tensors) {
    const size = shape.reduce((a, b) => a * b, 1);
    let tensor;
    if (int8) {
      const scales = floats(shape[0]), columns = size / shape[0], start = at;
      tensor = Float32Array.from({ length: size }, (_, i) => view.getInt8(start + i) * scales[Math.floor(i / columns)]);
      at += size;
    } else tensor = floats(size);
    tensor.shape = shape;
    const path = name.split("."), last = path.pop();
    let place = weights;
    for (const [i, key] of path.entries()) place = place[key] ??= /^\d+$/.test(path[i + 1] ?? last) ? [] : {};
    place[last] = tensor;
  }
  return { ...model, weights };
}

/** In a worker: keep one model, and answer. */
function serve() {
  let reader, text;
  const tasks = {
    load: (json) => void (reader = new Reader(unpack(JSON.parse(json)))),
    read: (ids) => reader.read(ids),
    write: ({ ids, ...how }) => void (text = writeOn(reader, ids, how)),
    next: () => text.next().value,
  };
  self.onmessage = ({ data: [task, given] }) => self.postMessage(tasks[task](given));
}

if (typeof module !== "undefined") module.exports = { Reader, draw, randomNumbers, unpack, writeOn };
