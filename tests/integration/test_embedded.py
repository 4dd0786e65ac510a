"""The embedded engines: they come up, keep what was committed through every kind of death, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis
import redis.asyncio

from lava_proxy.app import embedded, engine_process, engine_sources
from lava_proxy.app.embedded import EmbeddedEngines, Engines
from lava_proxy.app.engine_sources import EngineError, EngineOptions
from tests.engines import RunningEngines, flush_redis, fresh_database, options_from_environment

DEADLINE_S = 20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[EmbeddedEngines]:
    owner = EmbeddedEngines()
    owner.start(folder, options_from_environment())
    yield owner
    owner.stop()


async def query(engines: Engines, sql: str, *arguments: object) -> object:
    connection = await asyncpg.connect(engines.database_url)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while _running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def wait_until_noticed(started: EmbeddedEngines) -> None:
    """A killed process with several threads is a zombie a moment before its parent can collect it."""
    deadline = time.monotonic() + DEADLINE_S
    while started.poll() != ["redis", "postgres"]:
        assert time.monotonic() < deadline, f"only {started.poll()} noticed"
        time.sleep(0.01)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_both_engines_answer_and_debits_are_synced_before_the_answer(started: EmbeddedEngines) -> None:
    engines = started.engines()
    with redis.Redis.from_url(engines.redis_url) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("port") == {"port": "0"}
    assert await query(engines, "select current_user || '@' || current_database()") == "lava@lava"
    assert await query(engines, "show fsync") == "on"
    assert await query(engines, "show listen_addresses") == ""
    assert await query(engines, "show server_encoding") == "UTF8"
    assert await query(engines, "show timezone") == "UTC"
    assert started.poll() == []


async def test_everything_committed_survives_kill_nine_of_both_engines(started: EmbeddedEngines) -> None:
    engines = started.engines()
    assert engines.redis_pid is not None and engines.postgres_pid is not None
    await query(engines, "create table if not exists kept (number int primary key)")
    open_connection = await asyncpg.connect(engines.database_url)  # its backend outlives the postmaster for a moment
    for number in range(3):
        await query(engines, "insert into kept values ($1)", number)
        with redis.Redis.from_url(engines.redis_url) as client:
            client.incr("kept")
        engines = started.engines()
        os.kill(engines.redis_pid, signal.SIGKILL)
        os.kill(engines.postgres_pid, signal.SIGKILL)
        wait_until_gone(engines.redis_pid)
        wait_until_gone(engines.postgres_pid)
        wait_until_noticed(started)
        assert started.restart_redis() != engines.redis_pid
        assert started.restart_postgres() != engines.postgres_pid
        assert started.poll() == []
        engines = started.engines()
    open_connection.terminate()
    with redis.Redis.from_url(engines.redis_url) as client:
        assert client.get("kept") == b"3"
    assert await query(engines, "select count(*) from kept") == 3


async def test_a_postmaster_pid_file_that_names_a_foreign_process_does_not_stop_the_start(
    started: EmbeddedEngines, folder: Path
) -> None:
    pid = started.engines().postgres_pid
    assert pid is not None
    pid_file = folder / "pg" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")  # as after a reboot that reused the pid
    started.restart_postgres()
    assert await query(started.engines(), "select 1") == 1


def test_a_second_process_cannot_use_the_same_folder(started: EmbeddedEngines, folder: Path) -> None:
    with pytest.raises(EngineError, match=f"in use by another process .pid {os.getpid()}."):
        EmbeddedEngines().start(folder)
    assert started.poll() == []


async def test_a_clean_stop_leaves_no_process_no_socket_and_all_data() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    try:
        owner = EmbeddedEngines()
        first = owner.start(folder, options_from_environment())
        await query(first, "create table kept as select 7 as number")
        owner.stop()
        owner.stop()
        assert first.redis_pid is not None and first.postgres_pid is not None
        assert not _running(first.redis_pid) and not _running(first.postgres_pid)
        assert "database system is shut down" in (folder / "log" / "postgres.log").read_text()
        assert "ready to exit" in (folder / "log" / "redis.log").read_text()
        again = owner.start(folder, options_from_environment())
        assert await query(again, "select number from kept") == 7
        owner.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", ["x" * 120, "a folder, with 'odd' names"])
async def test_a_long_or_odd_path_gets_its_sockets_in_a_short_folder(name: str) -> None:
    parent = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    try:
        owner = EmbeddedEngines()
        engines = owner.start(parent / name, options_from_environment())
        run_dir = engines.run_dir
        try:
            assert len(os.fsencode(run_dir)) < 60
            assert run_dir.stat().st_mode & 0o777 == 0o700
            assert await query(engines, "select 1") == 1
            with redis.Redis.from_url(engines.redis_url) as client:
                assert client.ping()
        finally:
            owner.stop()
        assert not run_dir.exists()
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def test_the_short_socket_folder_is_refused_when_it_is_a_symlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    try:
        home = tmp_path / ("y" * 120)
        short = embedded.socket_dir(home)
        assert short.parent == temporary
        short.rmdir()
        short.symlink_to(tmp_path)
        with pytest.raises(EngineError, match="not ours"):
            embedded.socket_dir(home)
    finally:
        shutil.rmtree(temporary)


def test_kill_nine_of_the_owner_ends_both_engines(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    program = (
        "import sys, pathlib\n"
        "from lava_proxy.app.embedded import EmbeddedEngines\n"
        "engines = EmbeddedEngines().start(pathlib.Path(sys.argv[1]))\n"
        "print(engines.redis_pid, engines.postgres_pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    try:
        owner = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        with owner:
            assert owner.stdout is not None
            pids = [int(word) for word in owner.stdout.readline().split()]
            assert all(_running(pid) for pid in pids)
            owner.kill()
        for pid in pids:
            wait_until_gone(pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_root_without_namespaces_runs_postgres_as_another_user() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    try:
        owner = EmbeddedEngines()
        engines = owner.start(folder, EngineOptions(root_mode="setuid"))
        assert engines.postgres_pid is not None
        status = Path(f"/proc/{engines.postgres_pid}/status").read_text()
        uid = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1]
        assert int(uid) != 0
        await query(engines, "create table kept as select 7 as number")
        owner.stop()
        # and back again: the files change hands with the mode
        engines = owner.start(folder, EngineOptions())
        assert await query(engines, "select number from kept") == 7
        owner.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_binaries_in_a_closed_folder_are_copied_for_the_other_user() -> None:
    closed = Path(tempfile.mkdtemp(prefix="lava-closed-"))  # mode 0700
    folder = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    source = engine_sources.locate_postgres(EngineOptions())
    if source.libs is None:
        pytest.skip("the PostgreSQL in use is not the wheel, so nothing has to be copied")
    try:
        package = closed / source.bindir.parent.parent.name
        shutil.copytree(source.bindir.parent, package / "pginstall", symlinks=True)
        shutil.copytree(source.libs, closed / source.libs.name)
        # as if the wheel were installed below a closed folder
        binaries = engine_sources.PgBinaries(
            bindir=package / "pginstall" / "bin", major=source.major, libs=closed / source.libs.name
        )
        owner = EmbeddedEngines()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_process, "locate_postgres", lambda options, major=None: binaries)
            engines = owner.start(folder, EngineOptions(root_mode="setuid"))
        assert await query(engines, "select 1") == 1
        assert os.readlink(f"/proc/{engines.postgres_pid}/exe").startswith(str(folder))
        owner.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(closed, ignore_errors=True)


async def test_without_the_wheel_the_systems_postgres_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sources, "_package_dir", lambda name: None)
    try:
        found = engine_sources.locate_postgres(EngineOptions())
    except EngineError as error:
        assert "LAVA_DATABASE_URL" in error.message
        pytest.skip("this system has no PostgreSQL of its own (apt-get install -y postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="lava-embedded-"))
    try:
        owner = EmbeddedEngines()
        engines = owner.start(folder, EngineOptions(redis_url="redis://redis.example/0"))
        assert str(await query(engines, "show server_version")).split(".")[0] == str(found.major)
        assert await query(engines, "show server_encoding") == "UTF8"
        owner.stop()
        with monkeypatch.context() as patch:  # an upgrade of the system must not open the folder with another major
            patch.setattr(engine_sources, "_pg_candidates", lambda options: iter(()))
            with pytest.raises(EngineError, match=f"made by PostgreSQL {found.major}"):
                owner.start(folder, EngineOptions(redis_url="redis://redis.example/0"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_without_the_wheel_the_systems_redis_is_taken_if_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sources, "_package_dir", lambda name: None)
    real = tmp_path / "redis-check-rdb"
    real.write_text("#!/bin/sh\necho Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc\n")
    real.chmod(0o755)
    (tmp_path / "redis-server").symlink_to(real)
    options = EngineOptions(search_path=str(tmp_path))
    assert engine_sources.locate_redis(options) == tmp_path / "redis-server"  # the link itself: the program looks at its name
    real.write_text("#!/bin/sh\necho Redis server v=6.2.14 sha=00000000:0\n")
    with pytest.raises(EngineError, match="LAVA_REDIS_URL"):
        engine_sources.locate_redis(options)


def test_given_urls_start_nothing(tmp_path: Path) -> None:
    owner = EmbeddedEngines()
    options = EngineOptions(redis_url="redis://redis.example/0", database_url="postgresql://db.example/lava")
    engines = owner.start(tmp_path, options)
    assert (engines.redis_url, engines.database_url) == (options.redis_url, options.database_url)
    assert engines.redis_pid is None and engines.postgres_pid is None
    assert owner.poll() == []
    owner.stop()


def test_a_data_folder_of_another_major_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EngineError, match=r"made by PostgreSQL 9.*LAVA_PG_BINDIR"):
        EmbeddedEngines().start(tmp_path, EngineOptions(redis_url="redis://redis.example/0"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (EngineOptions(redis_bin="/nowhere/redis-server"), "LAVA_REDIS_BIN: /nowhere/redis-server"),
        (EngineOptions(redis_url="redis://x/0", pg_bindir="/nowhere"), "LAVA_PG_BINDIR: /nowhere"),
    ],
)
def test_a_wrong_path_is_named(tmp_path: Path, options: EngineOptions, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        EmbeddedEngines().start(tmp_path, options)


def test_an_engine_that_ends_at_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    broken.chmod(0o755)
    options = EngineOptions(redis_bin=str(broken), database_url="postgresql://db.example/lava")
    with pytest.raises(EngineError, match=r"redis ended at start(.|\n)*out of luck"):
        EmbeddedEngines().start(tmp_path / "home", options)


async def test_the_fixtures_give_an_empty_redis_and_a_database_of_ones_own(engines: RunningEngines) -> None:
    client = redis.asyncio.Redis.from_url(engines.redis_url)
    await client.set("left", "over")
    await flush_redis(engines.redis_url)
    assert await client.dbsize() == 0
    await client.aclose()
    async with fresh_database(engines.database_url) as url:
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
        await connection.close()
