"""Real Triton servers as fixtures; each starts once, when a test first wants it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import exported
import pytest
import reference
import served_family
from network import Network
from servers import ROOT, Server, make_repository, start

from server import launcher


@pytest.fixture(scope="session")
def serve_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """As `serve`, but for servers that all files share."""
    with _serving(tmp_path_factory) as factory:
        yield factory


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`serve(repository, *arguments)` starts a server; all end with the file's last test."""
    with _serving(tmp_path_factory) as factory:
        yield factory


@contextmanager
def _serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    processes = []

    def factory(repository: Path, *arguments: str) -> Server:
        server = start(repository, tmp_path_factory.mktemp("server"), *arguments)
        processes.append(server.process)
        return server

    try:
        yield factory
    finally:
        for process in processes:
            launcher.stop(process, timeout_s=0)  # Nobody waits for an answer.


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small detector; see `exported.small`."""
    return exported.small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def server(
    serve_on: Callable[..., Server], small_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A server of the small detector, for whatever does not change it."""
    return serve_on(make_repository(tmp_path_factory.mktemp("repository"), small_onnx))


@pytest.fixture(scope="session")
def coins_server(serve_on: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server of the demo's network, in a folder whose name a shell would not read."""
    return serve_on(
        make_repository(tmp_path_factory.mktemp("die Münzen; it's"), exported.export(ROOT / "demo/coins.pth"))
    )


@pytest.fixture(scope="module")
def machine(coins_server: Server) -> Iterator[Network]:
    """The network between a client and the demo's server, which a test can cut."""
    network = Network(coins_server.grpc_url)
    yield network
    network.close()


@pytest.fixture(scope="module", params=["resdcn_18", "dla_34"])
def reference_server(
    request: pytest.FixtureRequest,
    shared: Path,
    serve: Callable[..., Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Server]:
    """An architecture and a server of its reference checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = reference.write_checkpoint(shared, request.param, folder / "checkpoint.pth")
    return request.param, serve(make_repository(folder, exported.export(checkpoint)))


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ONNX file of a narrow network for each task, and of a detector."""
    folder = tmp_path_factory.mktemp("networks")
    made = {name: served_family.export(name, folder) for name in served_family.NETWORKS}
    return made | {"helmets": served_family.export_helmets(folder)}


@pytest.fixture(scope="session")
def family_repository(networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of these, as `export.to_repository` writes them; of tracks two, with limits of their own."""
    folder = tmp_path_factory.mktemp("family") / "repository"
    for name, path in networks.items():
        served_family.write_repository(name, path, folder)
    served_family.write_repository("hasty", networks["tracks"], folder)
    # Of one, streams never go idle here, however slow the machine; of the other, soon.
    for name, idle_us in {"tracks": 10**9, "hasty": 10**6}.items():
        config = folder / name / "config.pbtxt"
        text = config.read_text(encoding="utf-8")
        for old, new in {"10000000": str(idle_us), '"64"': '"4"'}.items():
            assert old in text
            text = text.replace(old, new)
        config.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def family_server(serve_on: Callable[..., Server], family_repository: Path) -> Server:
    """A server of it, the largest here: `OF_ONE_SERVER` in tests/conftest.py."""
    return serve_on(family_repository)


@pytest.fixture(scope="module")
def serve_edited(
    serve: Callable[..., Server], small_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Server]:
    """`serve_edited({old: new})`: the small detector with a changed text of the preprocess configuration."""

    def factory(edits: dict[str, str], *arguments: str) -> Server:
        repository = make_repository(tmp_path_factory.mktemp("repository"), small_onnx)
        config = repository / "centernet_preprocess/config.pbtxt"
        text = config.read_text()
        for old, new in edits.items():
            assert old in text
            text = text.replace(old, new)
        config.write_text(text)
        return serve(repository, *arguments)

    return factory


@pytest.fixture(scope="module")
def strict_server(serve_edited: Callable[..., Server]) -> Server:
    """A server of the small detector with limits of its own."""
    return serve_edited({"33554432": "100000", "67108864": "1000000", '"8"': '"32"'})


@pytest.fixture(scope="session")
def parts() -> Path:
    """The folder with chromium, chromedriver and axe.min.js."""
    import page  # selenium, for those alone who want it

    return page.parts()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to choose from, and what is none."""
    import page

    return page.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def browser(parts: Path, files: Path) -> Iterator[object]:
    """A browser, headless."""
    import page

    with page.browser(parts, files) as driver:
        yield driver
