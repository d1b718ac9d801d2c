import OpenAI from "openai";

export async function run(record, url, model, { few, many, long }) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-test", maxRetries: 0 });

  async function call(name, request) {
    const answer = await client.embeddings.create({ model, ...request });
    const rows = answer.data.map((item) => item.embedding);
    const indexes = answer.data.map((item) => item.index);
    record.vectors(name, rows, { indexes, model: answer.model, usage: answer.usage });
  }

  await call("default", { input: few }); // sends encoding_format base64
  await call("float", { input: few, encoding_format: "float" });
  await call("one", { input: few[0] });
  await call("dimensions 64", { input: few, dimensions: 64 });
  await call("task_type", { input: few, task_type: "clustering" });
  const models = [];
  for await (const each of client.models.list()) models.push(each.id);
  record.facts("models", { ids: models });
  record.facts("retrieve", { id: (await client.models.retrieve(model)).id });
  await record.error("unknown model", () => call("", { input: few, model: "no-such-model" }));
  await record.error("too long", () => call("", { input: long }));

  const parts = [0, 5, 10, 15, 20].map((start) => many.slice(start, start + 5));
  const answers = await Promise.all(
    parts.map((input) => client.embeddings.create({ model, input })),
  );
  record.vectors("together", answers.flatMap((answer) => answer.data.map((item) => item.embedding)));
}
