"""A little shop, the worked example: `switchgear demo` runs it and then checks its books.

`shop.py` has the handlers, `store.py` the shop's books, `customers.py` who buys what, `check.py` what must be true at
the end, `flaky.py` what goes wrong on the way.
"""
