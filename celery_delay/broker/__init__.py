"""The way to a broker: where it is, what reaches it, and its word for each message."""
