// As ../embed.mjs, with version 2 of Transformers.js, for which the card's snippet was written.

import { env, layer_norm, pipeline } from '@xenova/transformers';
import { batches, fail, readArguments, report } from '../cli.mjs';

const { root, name, dtype, dim, texts, json } = readArguments('xenova/embed.mjs', [
  '--dtype',
  '--dim',
  '--texts',
]);
if (dtype === 'fp16') fail('this version of Transformers.js reads fp32 and q8 only');
env.allowRemoteModels = false;
env.localModelPath = root;

const began = performance.now();
const extractor = await pipeline('feature-extraction', name, { quantized: dtype === 'q8' });
const loaded = performance.now();

const pooled = [];
const vectors = [];
for (const batch of batches(texts)) {
  const embeddings = await extractor(batch, { pooling: 'mean' });
  const width = embeddings.dims[1];
  if (dim > width) fail(`--dim is at most ${width} for this model, not ${dim}`);
  pooled.push(...embeddings.tolist());
  vectors.push(
    ...layer_norm(embeddings, [width])
      .slice(null, [0, dim])
      .normalize(2, -1)
      .tolist(),
  );
}
const seconds = { load: (loaded - began) / 1e3, run: (performance.now() - loaded) / 1e3 };
report({ json, texts }, { pooled, vectors, seconds });
