import { CohereClient, CohereClientV2 } from "cohere-ai";

export async function run(record, url, model, { few, many }) {
  const settings = { token: "unused", environment: url };
  const request = { model, query: few[0], documents: many };

  function store(name, answer) {
    record.ranking(name, answer.results.map((each) => [each.index, each.relevanceScore]));
  }

  const v2 = new CohereClientV2(settings);
  store("v2", await v2.rerank(request));
  store("v2 top", await v2.rerank({ ...request, topN: 3 }));
  const v1 = new CohereClient(settings);
  store("v1", await v1.rerank(request));
}
