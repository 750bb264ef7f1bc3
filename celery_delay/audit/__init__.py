"""The SQL side: the story of every delayed task.

``tables`` names each table, ``database`` connects, ``schema`` makes and migrates the
tables, ``merge`` folds events into rows, ``log`` writes what the journal says, ``queries``
reads it back.  Only this package imports SQLAlchemy and Alembic.
"""
