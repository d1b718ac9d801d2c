// The vectors that the checkpoint's own modules give (pooling, Dense, L2), for any embedding model:
// the output `sentence_embedding` of the graph. Equal to `Embedder.encode` with prompt="".

import { AutoModel, AutoTokenizer, Tensor, env } from '@huggingface/transformers';
import { batches, readArguments, report } from './cli.mjs';
import { ownVectors } from './vectors.mjs';

const { root, name, dtype, texts, json } = readArguments('own_vectors.mjs');
env.allowRemoteModels = false;
env.localModelPath = root;

const began = performance.now();
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModel.from_pretrained(name, { dtype });
const loaded = performance.now();

const vectors = [];
for (const batch of batches(texts)) {
  const rows = await ownVectors({ Tensor, tokenizer, model }, batch);
  vectors.push(...rows.map((row) => [...row]));
}
const seconds = { load: (loaded - began) / 1e3, run: (performance.now() - loaded) / 1e3 };
report({ json, texts }, { vectors, seconds });
