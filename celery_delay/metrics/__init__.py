"""Numbers for Prometheus, and whether a beat is well: what ``delay_http`` serves."""
