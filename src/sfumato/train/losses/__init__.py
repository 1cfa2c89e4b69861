"""What training minimises, each loss in a file of its own."""
