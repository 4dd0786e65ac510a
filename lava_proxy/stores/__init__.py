"""The only room that talks to Redis and Postgres. balance_store.py is the money script's caller; lua/ holds the script."""
