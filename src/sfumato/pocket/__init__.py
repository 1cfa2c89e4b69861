"""Everything that only the embedded model needs: its pictures, its recipe and the runner of it."""
