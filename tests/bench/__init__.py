"""Speed against the raw client and against FastStream: `python -m tests.bench --help`.

Every measurement is a process of its own; the sides of a workload take turns in every round, and only figures of the
same round are compared, so that a machine that slows down slows all of them. A new broker is a function in
`brokers.py`, a new workload a file that makes a `Workload`, listed in `registry.py`.
"""
