"""What tests are made of: small models, made data, hostile files, processes."""
