"""Answers pictures by plain HTTP and shows a page in the browser, through a Triton server."""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
import sys
from importlib.util import find_spec

from clients import options

NEEDED = ("fastapi", "fastapi-offline", "prometheus-client", "python-multipart", "uvicorn")
"""The optional dependencies `web`; their modules have underscores."""


def main() -> int:
    """Runs the command line until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m clients.web", description=__doc__)
    add = parser.add_argument_group("page").add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    add("--port", type=_port, default=8080, help="default: 8080; 0: a free one")
    add(
        "--allow-host",
        type=_name,
        action="append",
        default=[],
        metavar="NAME",
        help="a name that it is reached by, beside localhost and addresses in numbers",
    )
    add(
        "--allow-origin",
        type=_origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="another site whose pages may ask (CORS), like https://example.org",
    )
    options.add_connection_options(parser)
    # A person waits: two short retries bridge a hiccup, and the page itself goes on when the server is back.
    parser.set_defaults(retries=3, deadline_s=20.0)
    arguments = parser.parse_args()
    if missing := [name for name in NEEDED if find_spec(name.replace("-", "_")) is None]:
        parser.error(f"packages are missing: pip install {' '.join(missing)}")

    from clients.web.app import Settings, make_app
    from clients.web.listen import serve

    with options.one_line_errors("clients.web") as program:
        client = options.async_client(parser, arguments)
        settings = Settings(
            max_in_flight=arguments.concurrency,
            hosts=frozenset(arguments.allow_host),
            origins=tuple(arguments.allow_origin),
        )
        try:
            listener = socket.create_server(
                (arguments.host, arguments.port),
                family=socket.AF_INET6 if ":" in arguments.host else socket.AF_INET,
                backlog=512,
            )
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{arguments.host}:{arguments.port}") from error
        serve(make_app(client, settings), listener, on_ready=lambda: _greet(listener))
    return program.code


def _greet(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    name = "localhost" if address.is_loopback else f"[{host}]" if address.version == 6 else host
    everyone = "" if address.is_loopback else " (whoever reaches this machine may use it)"
    print(f"http://{name}:{port}{everyone}", flush=True)


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a port from 0 to 65535")
    return int(text)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"found '{text}', expected a host's name without a port")
    return text.lower()


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9_.-]+(:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"found '{text}', expected scheme and host, like https://example.org"
        )
    return text.lower()


if __name__ == "__main__":
    sys.exit(main())
