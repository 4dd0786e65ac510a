"""What each provider family says and costs: pure functions of bytes. base.py holds the protocol; registry.py the table."""
