"""Background workers, each `async run_once() -> int` (how much it did).

Flusher, hold reaper, recovery, credit applier, lot expirer.
"""
