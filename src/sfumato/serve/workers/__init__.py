"""The process that generates, and what the front and it say to each other."""
