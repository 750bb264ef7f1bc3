"""What the shop's web views call: here tasks are scheduled, and cancelled again."""

from datetime import date, datetime, tzinfo

from celery_delay import DelayedResult
from shop import orders
from shop.app import app
from shop.tasks import cancel_unpaid_order, charge_card, greet, remind_of_coupon
from shop.times import CHARGE_AFTER, COUPON_REMINDER, GREETING_AT, PAYMENT_WINDOW


def place_order(number: int) -> DelayedResult:
    """Take an order, and cancel it if it is not paid in time.

    The task's id follows from the order's number, so that nobody has to remember it.
    Scheduling comes first: should the INSERT fail, the task will find nothing to cancel,
    which is better than an order that nobody ever cancels.
    """
    scheduled = cancel_unpaid_order.apply_delayed(
        (number,), countdown=PAYMENT_WINDOW, task_id=cancellation_id(number)
    )
    orders.insert(number)
    return scheduled


def pay_order(number: int) -> bool:
    """Note a payment, and call the cancellation off; False if the order is gone.

    ``cancel()`` says CANCELLED, or TOO_LATE if the task has just been handed to its queue.
    Both are fine: the task looks at the order before it does anything.
    """
    if not orders.set_paid(number):
        return False
    app.delayed.cancel(cancellation_id(number), reason="the order was paid")
    return True


def cancellation_id(number: int) -> str:
    """Id of the task that cancels an order."""
    return f"cancel-unpaid-order-{number}"


def charge_later(number: int) -> DelayedResult:
    """Charge the customer's card in a few minutes."""
    return charge_card.delay_for(CHARGE_AFTER, number)


def issue_coupon(code: str, expires: datetime) -> DelayedResult:
    """Remind the owner before *expires*, an aware datetime."""
    return remind_of_coupon.delay_until(expires - COUPON_REMINDER, code)


def greet_on(customer: str, birthday: date, zone: str | tzinfo) -> DelayedResult:
    """Greet the customer on *birthday* at nine in the morning, where the customer lives.

    *zone* is a name such as "Asia/Tokyo".  With ``tz=`` a naive eta is the local time there.
    """
    return greet.apply_delayed((customer,), eta=datetime.combine(birthday, GREETING_AT), tz=zone)
