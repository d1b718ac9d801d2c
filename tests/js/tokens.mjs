// Token ids of texts as a version of Transformers.js finds them.
// node tokens.mjs LIBRARY_FOLDER PACKAGE MODEL TEXTS.json

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, name, model, file] = process.argv.slice(2);
const path = createRequire(join(folder, 'package.json')).resolve(name);
const { AutoTokenizer, env } = await import(pathToFileURL(path));
env.allowRemoteModels = false;
env.localModelPath = `${dirname(model)}/`;
const tokenizer = await AutoTokenizer.from_pretrained(basename(model));
const options = { truncation: false, padding: false, return_tensor: false };
const ids = JSON.parse(readFileSync(file, 'utf-8')).map((text) => tokenizer(text, options).input_ids);
console.log(JSON.stringify({ ids }));
