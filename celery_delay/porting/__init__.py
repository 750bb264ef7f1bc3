"""Out of one store, as lines of JSON, and into another."""
