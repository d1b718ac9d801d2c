// Assemble a static site in site/: the page, Transformers.js, its runtime, and exported models.
// No host but the one that serves it is asked for anything.

import {
  cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync,
} from 'node:fs';
import { dirname, join, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { MODEL_FILES, fail, modelFolder } from './cli.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, 'node_modules');
const RUNTIME = 'ort-wasm-simd-threaded';
const VENDOR = {
  'transformers.min.js': '@huggingface/transformers/dist/transformers.min.js',
  [`${RUNTIME}.mjs`]: `onnxruntime-web/dist/${RUNTIME}.mjs`,
  [`${RUNTIME}.wasm`]: `onnxruntime-web/dist/${RUNTIME}.wasm`,
};
const SETTINGS = [
  'config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'config_sentence_transformers.json',
];

const usage = 'npm run site -- MODEL [MODEL ...] [--dtype q8|fp32|fp16] [--out site]';

function parse() {
  const options = {
    dtype: { type: 'string', default: 'q8' },
    out: { type: 'string', default: join(here, 'site') },
  };
  try {
    return parseArgs({ options, allowPositionals: true });
  } catch (error) {
    return fail(`${error.message}\n${usage}`);
  }
}

const { values, positionals } = parse();
if (!positionals.length) fail(usage);
const { dtype, out } = values;
const found = positionals.map((path) => modelFolder(path, dtype));
for (const { folder } of found) {
  const { task } = JSON.parse(readFileSync(join(folder, 'nomicbert_export.json'), 'utf-8'));
  if (task !== 'feature-extraction') fail(`${folder} is for ${task}: the page needs vectors`);
}

const names = found.map(({ name }) => name);
const twice = names.find((name, place) => names.indexOf(name) !== place);
if (twice) fail(`two folders are called ${twice}: rename one, for the page lists them by name`);
// only what this script has made is removed
const mark = join(out, 'models', 'index.json');
if (existsSync(out) && readdirSync(out).length && !existsSync(mark)) {
  fail(`${out} holds other files: give --out a new folder`);
}
const inside = found.find(({ folder }) => resolve(folder).startsWith(resolve(out) + sep));
if (inside) fail(`${inside.folder} lies in ${out}, which is made anew: give --out another folder`);
for (const part of ['vendor', 'models']) rmSync(join(out, part), { recursive: true, force: true });
mkdirSync(join(out, 'vendor'), { recursive: true });
cpSync(join(here, 'web'), out, { recursive: true });
cpSync(join(here, 'vectors.mjs'), join(out, 'vectors.mjs'));
for (const [name, from] of Object.entries(VENDOR)) {
  cpSync(join(modules, from), join(out, 'vendor', name));
}
const runtime = statSync(join(out, 'vendor', `${RUNTIME}.wasm`)).size;
const models = found.map(({ name, folder }) => {
  const files = [...SETTINGS, join('onnx', MODEL_FILES[dtype])];
  for (const file of files) cpSync(join(folder, file), join(out, 'models', name, file));
  const sizes = files.map((file) => statSync(join(folder, file)).size);
  return { name, dtype, bytes: runtime + sizes.reduce((sum, size) => sum + size) };
});
writeFileSync(join(out, 'models', 'index.json'), JSON.stringify(models, null, 2));
console.log(`${out}: ${models.map(({ name }) => name).join(', ')}. Next: npm run serve`);
