from functools import partial

from celery import uuid
from django.conf import settings
from django.db import transaction
from django.http import JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST
from proj.celery import app

from shop.models import Order
from shop.tasks import cancel_unpaid


@require_POST
def place(request):
    with transaction.atomic():
        order = Order.objects.create(cancellation=uuid())
        transaction.on_commit(
            partial(
                cancel_unpaid.apply_delayed,
                (order.pk,),
                countdown=settings.PAY_WITHIN,
                task_id=order.cancellation,
            )
        )
    return JsonResponse({"order": order.pk, "cancellation": order.cancellation}, status=201)


def show(request, pk):
    return JsonResponse({"state": get_object_or_404(Order, pk=pk).state})


@require_POST
def pay(request, pk):
    order = get_object_or_404(Order, pk=pk)
    outcome = app.delayed.cancel(order.cancellation, reason="paid")
    if not outcome:  # TOO_LATE: the task may be running at this very moment
        return JsonResponse({"outcome": outcome.value}, status=409)
    Order.objects.filter(pk=pk).update(state="paid")
    return JsonResponse({"outcome": outcome.value})
