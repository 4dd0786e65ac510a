"""The gateway role, composed. It imports nothing of the control plane: workers start fast and stay small."""

from __future__ import annotations

import socket

from lava_proxy.app.open_stores import open_stores, prices_of, registry_of
from lava_proxy.app.process import collect_rarely, stop_event
from lava_proxy.app.run_config import RunConfig, business_clock, control_address
from lava_proxy.gateway.upstream import Origin
from lava_proxy.gateway.worker import GatewayWorker
from lava_proxy.settings import Settings
from lava_proxy.wire.control_hop import hop_secret


async def run_gateway(config: RunConfig, settings: Settings, listening: socket.socket) -> None:
    """One gateway worker on a bound socket."""
    stopping = stop_event()
    stores = await open_stores(config, settings, pool_max=4)
    registry = registry_of(config, settings)
    worker = GatewayWorker(
        settings,
        registry=registry,
        prices=prices_of(settings),
        redis=stores.hot,
        outbox=stores.outbox,
        catalog=stores.catalog,
        ledger=stores.ledger,
        database_url=config.database_url,
        control=_control_origin(config),
        control_hop=hop_secret(config.master_key) if config.control_url else "",
        env_keys=settings.provider_keys({p.name: p.key_env for p in registry.providers}),
        clock=business_clock(config),
    )
    await worker.start(listening)
    collect_rarely()
    await stopping.wait()
    await worker.stop()
    await stores.close()


def _control_origin(config: RunConfig) -> Origin:
    """Where a gateway sends what is not its own."""
    if not config.control_url:
        return Origin("control", 0, tls=False, guarded=False, unix=config.control_socket)
    host, port, tls = control_address(config.control_url)
    return Origin(host, port, tls=tls, guarded=False)
