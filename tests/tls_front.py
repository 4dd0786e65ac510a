"""TLS before a daemon, as its operator has it: a loopback terminator with a certificate of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFront:
    """`port` speaks TLS; `certificate` is what a client must trust."""

    port: int
    certificate: Path


def _write_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lava-proxy test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


@contextlib.contextmanager
def tls_front(folder: Path, upstream_port: int) -> Iterator[TlsFront]:
    """Terminates TLS on a free port and passes every byte on to 127.0.0.1:`upstream_port`, on a thread of its own."""
    certificate, key = _write_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ports: list[int] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()
    writers: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = {writer}
        writers.add(writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", upstream_port)
            pair.add(upstream_writer)
            writers.add(upstream_writer)
            await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))
        finally:
            for one in pair:
                one.transport.abort()
            writers.difference_update(pair)

    async def run() -> None:
        server = await asyncio.start_server(serve_client, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stopping.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()

    def main() -> None:
        try:
            loop.run_until_complete(run())
            loop.run_until_complete(asyncio.sleep(0.05))  # aborted transports close in the loop's next rounds
        finally:
            loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert ready.wait(20)
        yield TlsFront(port=ports[0], certificate=certificate)
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(20)
