"""Accepted jobs: their states, their place on disk, their order, and what is told about them."""
