// Scores of an exported reranker: the texts in the order of how well they answer the question.
// The scores are logits; `CrossEncoder.predict` applies the checkpoint's activation to them.

import { AutoModel, AutoTokenizer, Tensor, env } from '@huggingface/transformers';
import { batches, fail, readArguments } from './cli.mjs';
import { ownLogits } from './vectors.mjs';

const names = ['--question', '--dtype', '--texts'];
const { root, name, dtype, question, texts, json } = readArguments('rerank.mjs', names);
if (!question) fail('rerank.mjs needs --question TEXT');
env.allowRemoteModels = false;
env.localModelPath = root;

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModel.from_pretrained(name, { dtype });

const logits = [];
for (const batch of batches(texts)) {
  const rows = await ownLogits({ Tensor, tokenizer, model }, question, batch);
  logits.push(...rows.map((row) => [...row]));
}
if (json) {
  console.log(JSON.stringify({ logits }));
} else {
  const order = [...texts.keys()].sort((a, b) => logits[b][0] - logits[a][0]);
  for (const at of order) console.log(`${logits[at][0].toFixed(3).padStart(8)}  ${texts[at]}`);
}
