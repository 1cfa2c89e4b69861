"""The networks: one file one model, each with its config, its module and its names in the published layouts."""
