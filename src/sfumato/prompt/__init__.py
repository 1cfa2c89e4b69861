"""From a prompt's text to windows of token ids with weights, and to the context the UNet attends to."""
