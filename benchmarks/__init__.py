"""One script a claim. `python -m benchmarks` lists them; `python -m benchmarks startup load` runs those two."""
