"""The control plane's REST resources and status page on aiohttp: one file a resource family, named as in the URL."""
