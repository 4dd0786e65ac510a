"""The only room where money moves. charging.py: reserve and settle; funding.py: credit, renew and adjust, exactly once by id."""
