from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        from proj.celery import app

        app.delayed.check()  # a wrong CELERY_DELAY_… ends the process now, not at the first order
