"""langchain-nomic: NomicEmbeddings, on top of nomic; only ATLAS_API_PATH says where."""

import os


def run(record, url, model, texts):
    os.environ["ATLAS_API_PATH"] = url
    from langchain_nomic import NomicEmbeddings  # nomic reads HOME when it is imported

    few, many = texts["few"], texts["many"]
    plain = NomicEmbeddings(model=model, nomic_api_key="nk-test")
    record.vectors("documents", plain.embed_documents(many))
    record.vectors("query", [plain.embed_query(few[0])])
    record.vectors("task", plain.embed(few, task_type="clustering"))
    short = NomicEmbeddings(model=model, dimensionality=64)  # has logged in
    record.vectors("dimensions 64", short.embed_documents(few))
    os.environ["NOMIC_API_KEY"] = "nk-other"
    keyed = NomicEmbeddings(model=model)
    record.vectors("key of the environment", keyed.embed_documents(few))
