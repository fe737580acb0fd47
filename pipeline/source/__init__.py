"""Where a model comes from, and what is read of it: weights, tokenizer, end ids, texts."""
