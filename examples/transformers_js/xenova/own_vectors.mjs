// As ../own_vectors.mjs, with version 2 of Transformers.js.

import { AutoModel, AutoTokenizer, Tensor, env } from '@xenova/transformers';
import { batches, fail, readArguments, report } from '../cli.mjs';
import { ownVectors } from '../vectors.mjs';

const { root, name, dtype, texts, json } = readArguments('xenova/own_vectors.mjs');
if (dtype === 'fp16') fail('this version of Transformers.js reads fp32 and q8 only');
env.allowRemoteModels = false;
env.localModelPath = root;

const began = performance.now();
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModel.from_pretrained(name, { quantized: dtype === 'q8' });
const loaded = performance.now();

const vectors = [];
for (const batch of batches(texts)) {
  const rows = await ownVectors({ Tensor, tokenizer, model }, batch);
  vectors.push(...rows.map((row) => [...row]));
}
const seconds = { load: (loaded - began) / 1e3, run: (performance.now() - loaded) / 1e3 };
report({ json, texts }, { vectors, seconds });
