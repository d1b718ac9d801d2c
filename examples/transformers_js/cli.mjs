// What the scripts share: arguments, the texts, the files of the model, and what is printed.

import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

export const MODEL_FILES = {
  fp32: 'model.onnx',
  fp16: 'model_fp16.onnx',
  q8: 'model_quantized.onnx',
};
const CARD_TEXTS = [
  'search_query: What is TSNE?',
  'search_query: Who is Laurens van der Maaten?',
];
const OPTIONS = {
  '--dtype': 'fp32|fp16|q8',
  '--dim': '512',
  '--question': 'TEXT',
  '--texts': 'FILE.json',
};
const BATCH = 8;

/** End with a message in place of a stack trace. */
export function fail(message) {
  console.error(message);
  process.exit(1);
}

/**
 * The folder of an exported model; ends with advice if a file is missing.
 * @returns {{root: string, name: string, folder: string}} root is for `env.localModelPath`
 */
export function modelFolder(path, dtype) {
  if (!Object.hasOwn(MODEL_FILES, dtype)) {
    fail(`--dtype is ${Object.keys(MODEL_FILES).join(', ')}, not ${dtype}`);
  }
  const folder = resolve(path);
  for (const file of ['nomicbert_export.json', join('onnx', MODEL_FILES[dtype])]) {
    if (!existsSync(join(folder, file))) {
      fail(`${join(folder, file)} is missing: nomicbert export MODEL -o ${path} --dtype ${dtype}`);
    }
  }
  return { root: `${dirname(folder)}/`, name: basename(folder), folder };
}

/** Arguments of a script: MODEL, the options named, and --json. */
export function readArguments(script, names = ['--dtype', '--texts']) {
  const shown = names.map((name) => `[${name} ${OPTIONS[name]}]`).join(' ');
  const usage = `node ${script} MODEL ${shown} [--json]`;
  const options = { json: { type: 'boolean', default: false } };
  for (const name of names) options[name.slice(2)] = { type: 'string' };
  let found;
  try {
    found = parseArgs({ options, allowPositionals: true });
  } catch (error) {
    fail(`${error.message}\n${usage}`);
  }
  const { values, positionals } = found;
  if (positionals.length !== 1) fail(usage);
  const { dtype = 'fp32', json, question } = values;
  const dim = Number(values.dim ?? OPTIONS['--dim']);
  if (!Number.isInteger(dim) || dim < 1) fail(`--dim must be 1 or more, not ${values.dim}`);
  const texts = values.texts ? readTexts(values.texts) : CARD_TEXTS;
  return { ...modelFolder(positionals[0], dtype), dtype, dim, question, texts, json };
}

function readTexts(path) {
  let texts;
  try {
    texts = JSON.parse(readFileSync(path, 'utf-8'));
  } catch (error) {
    fail(`${path} cannot be read: ${error.message}`);
  }
  if (!Array.isArray(texts) || !texts.length || texts.some((text) => typeof text !== 'string')) {
    fail(`${path} is not a JSON list of strings`);
  }
  return texts;
}

/** Texts a few at a time, so that memory does not grow with their number. */
export function* batches(texts) {
  for (let start = 0; start < texts.length; start += BATCH) yield texts.slice(start, start + BATCH);
}

/** Print all vectors as JSON, or the cosines of the first texts. */
export function report({ json, texts }, found) {
  if (json) return console.log(JSON.stringify(found));
  const { vectors } = found;
  const first = vectors.slice(0, 8);
  console.log(`${vectors.length} vectors of ${vectors[0].length} values; cosines:`);
  first.forEach((row, at) => {
    const cosines = first.map((other) => cosine(row, other).toFixed(3).padStart(7)).join('');
    console.log(`${cosines}  ${texts[at].slice(0, 60)}`);
  });
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, at) => sum + value * y[at], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}
