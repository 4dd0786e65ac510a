"""The only room where money moves. charging.py: reserve and settle; funding.py: credit, exactly once by id."""
