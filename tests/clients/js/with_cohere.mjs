import { CohereClient, CohereClientV2 } from "cohere-ai";

const TASKS = ["search_query", "search_document", "classification", "clustering"];

export async function run(record, url, model, { few, many, long }) {
  const settings = { token: "unused", environment: url };
  const v2 = new CohereClientV2(settings);
  const options = { maxRetries: 0 };

  function embed(texts, inputType, request = {}) {
    return v2.embed({ model, texts, inputType, embeddingTypes: ["float"], ...request }, options);
  }

  for (const task of TASKS) {
    record.vectors(`v2 ${task}`, (await embed(few, task)).embeddings.float);
  }
  const short = await embed(many, "search_document", { outputDimension: 64 });
  record.vectors("v2 dimensions 64", short.embeddings.float);
  const typed = await embed(few, "search_document", { embeddingTypes: ["int8", "ubinary"] });
  record.vectors("v2 int8", typed.embeddings.int8);
  record.vectors("v2 ubinary", typed.embeddings.ubinary);
  await record.error("v2 unknown model", () =>
    embed(few, "search_query", { model: "no-such-model" }),
  );
  await record.error("v2 too long", () => embed(long, "search_query", { truncate: "NONE" }));

  const v1 = new CohereClient(settings);
  const request = { model, texts: few, inputType: "search_query" };
  record.vectors("v1", (await v1.embed(request, options)).embeddings);
}
