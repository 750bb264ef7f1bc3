from pathlib import Path

from celery import Celery

from celery_delay import CeleryDelay

HERE = Path(__file__).resolve().parent

celery = Celery("tasks")
celery.conf.update(
    broker_url="redis://localhost:6379/0",
    result_backend="redis://localhost:6379/1",
    delay_database_url=f"sqlite:///{HERE / 'delay.db'}",
)
CeleryDelay(celery)
celery.set_default()  # endpoints run in threads, and shared_task must find the app there too


@celery.task
def cancel_unpaid(order):
    (HERE / f"cancelled-{order}").touch()
    return f"order {order} was cancelled"
