"""Programs for those who work on lava-proxy; `./lava` starts them."""
