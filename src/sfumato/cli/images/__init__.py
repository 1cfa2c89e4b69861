"""Commands that make or replay pictures."""
