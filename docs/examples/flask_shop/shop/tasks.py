from celery import shared_task
from flask import current_app


@shared_task
def cancel_unpaid(order: int) -> None:
    with current_app.config["ORDERS"].open("a") as file:
        file.write(f"{order} cancelled\n")
