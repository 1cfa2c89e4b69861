"""Numbers about pictures, as pure functions of features, embeddings and pixels. All of it is computed in float64."""
