"""One HTTP request: its connection, head and body, the form of an answer or a refusal."""
