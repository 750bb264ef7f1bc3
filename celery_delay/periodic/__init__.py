"""Periodic schedules: when they fire, what they send, and how they are seen and changed."""
