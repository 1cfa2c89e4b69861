"""Pictures with captions: where they are kept, how they are drawn, and the scenes composed of them."""
