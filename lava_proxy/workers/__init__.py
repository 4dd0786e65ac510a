"""Background workers, each `async run_once() -> int` (how much it did): flusher, hold reaper, recovery, credit applier."""
