"""Finding a model and reading what it consists of: configuration, weights, tokenizer, template."""
