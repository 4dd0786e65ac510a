"""Measurements that end by themselves and talk to 127.0.0.1 only: `./lava bench NAME`, one module a benchmark.

Numbers from one machine at one time compare only inside one run: the same binary drifts by up to 1.8 times between
sittings. So every benchmark runs its subjects in turn, several rounds, and reports medians.
"""
