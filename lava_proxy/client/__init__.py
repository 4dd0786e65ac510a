"""The Python client: `LavaClient` and `AsyncLavaClient`, the objects that they answer with, and their errors.

Read first: `async_client.py`; `sync_client.py` is made from it (tests/client_twin.py). What is pure (errors, retries, the check of
a webhook's signature) stands beside them. Needs httpx (`pip install lava-proxy[client]`) and nothing of the server.
"""

from lava_proxy.client.async_client import AsyncLavaClient
from lava_proxy.client.errors import (
    AuthenticationError,
    ConflictError,
    ConnectionFailed,
    InsufficientFundsError,
    InvalidRequestError,
    LavaApiError,
    LavaClientError,
    NotAllowedError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
)
from lava_proxy.client.sync_client import LavaClient
from lava_proxy.client.webhook_events import InvalidSignature, verify_webhook

__all__ = [
    "AsyncLavaClient",
    "AuthenticationError",
    "ConflictError",
    "ConnectionFailed",
    "InsufficientFundsError",
    "InvalidRequestError",
    "InvalidSignature",
    "LavaApiError",
    "LavaClient",
    "LavaClientError",
    "NotAllowedError",
    "NotFoundError",
    "RateLimitError",
    "UnavailableError",
    "verify_webhook",
]
