// The snippet of the card of nomic-embed-text-v1.5, with a folder in place of the repository:
// mean pooling -> layer_norm -> slice -> L2. Other checkpoints: own_vectors.mjs.

import { env, layer_norm, pipeline } from '@huggingface/transformers';
import { batches, fail, readArguments, report } from './cli.mjs';

const { root, name, dtype, dim, texts, json } = readArguments('embed.mjs', ['--dtype', '--dim', '--texts']);
env.allowRemoteModels = false;
env.localModelPath = root;

const began = performance.now();
const extractor = await pipeline('feature-extraction', name, { dtype });
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
