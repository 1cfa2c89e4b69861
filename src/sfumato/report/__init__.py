"""What a model is, what it can do and what it cost: model cards, emissions and evaluation."""
