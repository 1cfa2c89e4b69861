"""Networks that turn pictures into features. Every weight is a local file whose SHA-256 is recorded."""
