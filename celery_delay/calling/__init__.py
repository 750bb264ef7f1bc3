"""The caller's side: delayed calls, one or many, on tasks and on canvas, until they are stored."""
