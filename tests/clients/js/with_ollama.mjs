import { Ollama } from "ollama";

export async function run(record, url, model, { few, many, long }) {
  const client = new Ollama({ host: url });

  async function call(name, request) {
    const answer = await client.embed({ model, ...request });
    const facts = { model: answer.model, tokens: answer.prompt_eval_count };
    record.vectors(name, answer.embeddings, facts);
  }

  await call("embed", { input: few });
  await call("one", { input: few[0] });
  await call("many", { input: many });
  await call("dimensions 64", { input: few, dimensions: 64 });
  await call("long", { input: long });
  const old = [];
  for (const prompt of many.slice(0, 3)) {
    old.push((await client.embeddings({ model, prompt })).embedding); // not normalised
  }
  record.vectors("embeddings", old);
  record.facts("list", { names: (await client.list()).models.map((each) => each.model) });
  record.facts("show", { capabilities: (await client.show({ model })).capabilities });
  record.facts("version", await client.version());
  await record.error("unknown model", () => call("", { model: "no-such-model", input: few }));
  await record.error("too long", () => call("", { input: long, truncate: false }));
}
