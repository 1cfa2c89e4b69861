"""What the server tells about itself: one log line a request, numbers for Prometheus."""
