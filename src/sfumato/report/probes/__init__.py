"""What a model generates beside what it was asked: each probe is a list of prompts and a way to read the answers."""
