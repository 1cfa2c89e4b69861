"""A model on disk: found by name, opened, converted, published, kept warm, identified."""
