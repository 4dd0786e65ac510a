"""Composition roots: the processes, their engines and the sandbox. The only place that builds the rooms' objects."""
