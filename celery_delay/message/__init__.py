"""From a message that Celery built to the entry that is stored, and its parts."""
