"""`python -m lava_proxy` is `lava-proxy`."""

from lava_proxy.cli import main

main()
