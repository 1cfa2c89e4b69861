"""How the embedded model was made: its recipes, and the run of their stages."""
