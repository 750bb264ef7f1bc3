"""The stage on which demo.py plays.  Nothing here is needed to use celery-delay."""
