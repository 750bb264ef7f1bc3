from django.test import TestCase, override_settings
from proj.celery import app

from shop.models import Order


class OrderTest(TestCase):
    def setUp(self):
        eager = override_settings(CELERY_TASK_ALWAYS_EAGER=True)
        eager.enable()
        self.addCleanup(eager.disable)

    def test_nobody_pays(self):
        with self.captureOnCommitCallbacks(execute=True):
            pk = self.client.post("/orders").json()["order"]

        # an eager task does not wait: it has run at once
        assert Order.objects.get(pk=pk).state == "cancelled"

    def test_nothing_is_scheduled_when_the_transaction_fails(self):
        with self.captureOnCommitCallbacks() as callbacks:
            self.client.post("/orders")

        assert len(callbacks) == 1  # and TestCase rolls back: it was never called
        assert app.conf.task_always_eager
