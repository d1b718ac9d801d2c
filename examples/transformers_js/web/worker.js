// The model, in a thread of its own so that the page stays responsive.
// In: load, embed, ask. Out: progress, ready, embedding, embedded, results, failed.

import { AutoModel, AutoTokenizer, Tensor, env } from './vendor/transformers.min.js';
import { ownVectors } from './vectors.mjs';

const BATCH = 8;
const MOST_HITS = 10;
const MOST_THREADS = 4;
const RUNTIME = 'vendor/ort-wasm-simd-threaded';

let library; // { Tensor, tokenizer, model }
let rows = []; // unit vectors of the texts, in order
let turn = 0; // of the last `load` or `embed`: an earlier `embed` ends when one begins
let busy = Promise.resolve(); // until nothing uses the model

const base = new URL('./', self.location.href);
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL('models/', base).pathname;
// The browser's HTTP cache asks whether a file has changed; this cache would keep an old export.
env.useBrowserCache = false;
env.useWasmCache = false;

/** fetch that counts bytes; the library's own progress reports load the model twice. */
let loaded = 0;
let total = 0;
const plain = self.fetch.bind(self);
async function counted(input, init) {
  const response = await plain(input, init);
  if (!response.ok || !response.body) return response;
  const count = new TransformStream({
    transform(chunk, controller) {
      loaded += chunk.byteLength;
      self.postMessage({ type: 'progress', loaded: Math.min(loaded, total), total });
      controller.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(count), response);
}
env.fetch = counted;

async function load({ name, dtype, bytes, threads }) {
  const began = performance.now();
  [loaded, total] = [0, bytes];
  turn += 1;
  rows = [];
  await busy;
  await library?.model.dispose();
  library = undefined;
  const wasm = env.backends.onnx.wasm;
  wasm.numThreads = threads || defaultThreads();
  wasm.wasmPaths = Object.fromEntries(
    ['mjs', 'wasm'].map((kind) => [kind, new URL(`${RUNTIME}.${kind}`, base).href]),
  );
  wasm.wasmBinary ??= await (await counted(wasm.wasmPaths.wasm)).arrayBuffer();
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModel.from_pretrained(name, { dtype, device: 'wasm' });
  library = { Tensor, tokenizer, model };
  self.postMessage({
    type: 'ready',
    seconds: (performance.now() - began) / 1e3,
    threads: wasm.numThreads,
    limit: tokenizer.model_max_length,
  });
}

/** Threads need memory that is shared, which a browser grants to isolated pages only. */
function defaultThreads() {
  return self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
}

async function embed({ texts, prompt }) {
  const own = ++turn;
  const began = performance.now();
  rows = [];
  for (let start = 0; start < texts.length; start += BATCH) {
    const batch = texts.slice(start, start + BATCH).map((text) => prompt + text);
    const found = await ownVectors(library, batch, true);
    if (own !== turn) return;
    rows.push(...found);
    self.postMessage({ type: 'embedding', done: rows.length, count: texts.length });
  }
  const seconds = (performance.now() - began) / 1e3;
  self.postMessage({ type: 'embedded', count: rows.length, width: rows[0].length, seconds });
}

async function ask({ id, text, prompt }) {
  const began = performance.now();
  const [query] = await ownVectors(library, [prompt + text], true);
  const scores = rows.map((row) => row.reduce((sum, value, at) => sum + value * query[at], 0));
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
  const hits = order.slice(0, MOST_HITS).map((index) => ({ index, score: scores[index] }));
  const milliseconds = performance.now() - began;
  self.postMessage({ type: 'results', id, text, hits, milliseconds });
}

const tasks = { load, embed, ask };
self.addEventListener('message', async ({ data }) => {
  const task = tasks[data.type](data);
  if (data.type !== 'load') busy = Promise.allSettled([busy, task]);
  try {
    await task;
  } catch (error) {
    self.postMessage({ type: 'failed', task: data.type, message: String(error?.message ?? error) });
  }
});
