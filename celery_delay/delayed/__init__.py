"""Behind ``app.delayed``: what waits and what was, found; and what waits, changed."""
