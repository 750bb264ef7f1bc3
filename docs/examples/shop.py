"""The app of the quickstart: an order that nobody pays is cancelled."""

from pathlib import Path

from celery import Celery

from celery_delay import CeleryDelay

HERE = Path(__file__).resolve().parent

app = Celery("shop")
app.conf.broker_url = "redis://localhost:6379/0"
app.conf.result_backend = "redis://localhost:6379/1"
app.conf.delay_database_url = f"sqlite:///{HERE / 'shop.db'}"
app.conf.delay_intercept = "retry"
CeleryDelay(app)


@app.task
def cancel_unpaid(order):
    (HERE / "cancelled.txt").open("a").write(f"order {order}\n")
    return f"order {order} was cancelled"


@app.task(bind=True, max_retries=3)
def charge(self, order):
    if self.request.retries < 2:
        raise self.retry(countdown=1)
    return f"order {order} was paid at attempt {self.request.retries + 1}"
