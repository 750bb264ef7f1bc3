import os
from pathlib import Path

from celery import Celery, Task
from flask import Flask, request

from celery_delay import CeleryDelay


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    CeleryDelay(celery_app)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app() -> Flask:
    app = Flask(__name__)
    folder = Path(os.environ.get("SHOP_FOLDER", app.instance_path))
    app.config.from_mapping(
        ORDERS=folder / "orders",
        CELERY={
            "broker_url": "redis://localhost:6379/0",
            "result_backend": "redis://localhost:6379/1",
            "delay_database_url": f"sqlite:///{folder / 'delay.db'}",
        },
    )
    app.config.from_prefixed_env()
    celery_init_app(app).delayed.check()

    from shop.tasks import cancel_unpaid

    @app.post("/orders/<int:order>")
    def place(order: int):
        result = cancel_unpaid.delay_for(float(request.args.get("pay_within", 1800)), order)
        return {"cancellation": result.id}, 201

    @app.post("/cancellations/<task_id>/cancel")
    def pay(task_id: str):
        outcome = app.extensions["celery"].delayed.cancel(task_id, reason="paid")
        return {"outcome": outcome.value}, 200 if outcome else 409

    return app
