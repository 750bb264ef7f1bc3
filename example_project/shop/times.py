"""How long things take in this shop.

All of it is counted in minutes, so that one setting shortens everything for a demo.
"""

import os
from datetime import time, timedelta

#: SHOP_MINUTE is the length of a shop's minute in seconds.
MINUTE = timedelta(seconds=float(os.environ.get("SHOP_MINUTE", "60")))

#: An order must be paid within this time.
PAYMENT_WINDOW = 30 * MINUTE
#: A card is charged a little later: until then the customer may change the order.
CHARGE_AFTER = 5 * MINUTE
#: A bank that does not answer is asked again after this time.
ASK_BANK_AGAIN = 10 * MINUTE
#: A coupon's owner is reminded so long before it expires.
COUPON_REMINDER = 15 * MINUTE
#: When birthday greetings go out, by the customer's clock.
GREETING_AT = time(9, 0)
