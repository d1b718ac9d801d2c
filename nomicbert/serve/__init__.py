"""An HTTP server for embeddings that speaks the protocols of OpenAI, TEI, nomic, Cohere, ollama."""
