"""Card processors: what takes real money. Read processor.py first (protocol and values); stripe.py and sandbox.py speak it."""
