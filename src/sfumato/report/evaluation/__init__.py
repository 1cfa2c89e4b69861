"""A model's pictures of a pinned list of prompts, scored, plotted and reported."""
