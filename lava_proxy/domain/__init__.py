"""Values and rules: money, usage, prices, fees, catalogue. Standard library only; no clock, no I/O. Read money.py first."""
