import { AtlasViewer, Embedder } from "@nomic-ai/atlas";

export async function run(record, url, model, { few, many, long }) {
  // http is used only for a location that begins with localhost
  const viewer = new AtlasViewer({
    apiKey: "nk-test",
    apiLocation: url.replace("http://127.0.0.1", "localhost"),
  });
  const documents = new Embedder(viewer, { model, taskType: "search_document" });
  record.vectors("documents", await documents.embed(few));
  const queries = new Embedder(viewer, { model, taskType: "search_query" });
  record.vectors("query", [await queries.embed(few[0])]);
  record.vectors("long", await documents.embed(long));
  record.vectors("together", await Promise.all(many.map((text) => documents.embed(text))));
}
