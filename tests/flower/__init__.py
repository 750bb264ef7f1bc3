"""The Delayed page in a real browser: the browser, the project behind it, its pictures."""
