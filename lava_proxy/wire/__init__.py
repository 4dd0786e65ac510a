"""Bytes to values and back, sans-IO: the framings usage hides in, content codings, forward tokens."""
