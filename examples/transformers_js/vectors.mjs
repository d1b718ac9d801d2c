// What an exported checkpoint computes by its own recipe: its vectors, in which pooling, Dense and
// L2 are done by the graph (output sentence_embedding), or the scores of a reranker (logits).
// Imports nothing: both versions of Transformers.js and the web page pass their own classes.

/**
 * Token ids and types of a text, or of a pair: at most as many as the model's limit. Transformers.js
 * cuts the last special token off a long text. Here it stays, as in Python. Of a long pair the
 * second text is cut.
 */
export function encode(tokenizer, text, pair = null) {
  const options = { text_pair: pair, padding: false, truncation: false, return_tensor: false };
  const { input_ids: ids, token_type_ids: types } = tokenizer(text, options);
  const limit = tokenizer.model_max_length;
  const cut = (row) => (row.length > limit ? [...row.slice(0, limit - 1), row.at(-1)] : row);
  return { ids: cut(ids), types: cut(types ?? ids.map(() => 0)) };
}

/** The model's inputs, padded to the longest text: int64 (texts, tokens). */
function inputsOf(Tensor, tokenizer, encoded) {
  const width = Math.max(...encoded.map(({ ids }) => ids.length));
  const shape = [encoded.length, width];
  const [ids, mask, types] = Array.from({ length: 3 }, () => new BigInt64Array(shape[0] * width));
  ids.fill(BigInt(tokenizer.pad_token_id ?? 0));
  encoded.forEach((row, at) => {
    ids.set(row.ids.map(BigInt), at * width);
    mask.fill(1n, at * width, at * width + row.ids.length);
    types.set(row.types.map(BigInt), at * width);
  });
  return {
    input_ids: new Tensor('int64', ids, shape),
    attention_mask: new Tensor('int64', mask, shape),
    token_type_ids: new Tensor('int64', types, shape),
  };
}

async function run({ Tensor, tokenizer, model }, encoded, name) {
  const outputs = await model(inputsOf(Tensor, tokenizer, encoded));
  const found = outputs[name];
  if (!found) {
    throw new Error(`the graph has no output ${name}, only ${Object.keys(outputs).join(', ')}`);
  }
  const [count, width] = found.dims;
  return Array.from({ length: count }, (_, at) => found.data.slice(at * width, (at + 1) * width));
}

/** Vectors of a few texts: an array of Float32Array, scaled to length 1 if `unit`. */
export async function ownVectors(library, texts, unit = false) {
  const encoded = texts.map((text) => encode(library.tokenizer, text));
  const rows = await run(library, encoded, 'sentence_embedding');
  return unit ? rows.map(scaled) : rows;
}

/** Logits of a reranker for a question with each of a few texts: an array of Float32Array. */
export async function ownLogits(library, question, texts) {
  const encoded = texts.map((text) => encode(library.tokenizer, question, text));
  return run(library, encoded, 'logits');
}

function scaled(row) {
  const norm = Math.hypot(...row);
  return norm > 0 ? row.map((value) => value / norm) : row;
}
