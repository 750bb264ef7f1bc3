"""What everything else speaks of: entries, states, settings, and the ports of the services.

Pure: no Redis, SQL or Celery here, and only :mod:`~celery_delay.domain.clock` reads a clock.
"""
