"""Real brokers as local processes, for tests: see `broker.py` for the life of one, `redis_server.py` for a recipe."""
