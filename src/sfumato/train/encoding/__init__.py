"""A data set's pictures encoded once, here, in processes or on a Ray cluster."""
