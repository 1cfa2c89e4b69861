"""What a training step is given: pictures, latents, captions, their order and random numbers."""
