"""What a step changes and how: optimisers, averages, the loss scaler."""
