"""Commands about models: the library, convert, inspect, card."""
