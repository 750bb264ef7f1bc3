"""The bank's payment service, or rather: something that is as unreliable."""


class BankAway(Exception):
    """The bank did not answer; ask again later."""


def charge(number: int, attempt: int) -> str:
    """Charge the card of an order; returns the bank's receipt.

    This one does not answer before the third attempt.  A real one wants the order's number as
    an idempotency key, since an answer may get lost *after* the card was charged.
    """
    if attempt < 3:
        raise BankAway(f"no answer to attempt {attempt}")
    return f"receipt for order {number}"
