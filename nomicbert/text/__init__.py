"""Text -> token ids: tokenizer, prompts, and the length at which a text is cut."""
