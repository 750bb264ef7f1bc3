from celery import shared_task

from shop.models import Order


@shared_task
def cancel_unpaid(pk):
    changed = Order.objects.filter(pk=pk, state="open").update(state="cancelled")
    return bool(changed)


@shared_task(bind=True, max_retries=3)
def remind(self, pk):
    if self.request.retries < 1:  # the mail server is away
        raise self.retry(countdown=1)
    Order.objects.filter(pk=pk).update(state="reminded")
