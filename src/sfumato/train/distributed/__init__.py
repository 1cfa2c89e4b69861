"""Several processes that train one model: their group, sharded tensors and checkpoints."""
