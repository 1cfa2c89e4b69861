"""A model's card: what is known of it, in the published card's sections."""
