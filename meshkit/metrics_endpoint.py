"""Owns the HTTP endpoint from which Prometheus scrapes a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

# How long the end of the process waits for the thread to notice, in seconds.
POLL_S = 0.05
CLOSE_TIMEOUT_S = 5.0


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per scrape, so that one that hangs holds nobody up."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    """Drops a peer that says nothing, and keeps scrapes out of the log."""

    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name.
        """Logs nothing."""


@contextmanager
def metrics_served(listen: str, registry: CollectorRegistry) -> Iterator[int]:
    """Serves /metrics from threads of its own and gives the port.

    Args:
        listen: "host:port"; port 0 lets the system choose.
        registry: What to report.

    Raises:
        OSError: The address cannot be taken.
    """
    host, _, port = listen.rpartition(":")
    httpd = make_server(host.strip("[]"), int(port), make_wsgi_app(registry), _Server, _Handler)
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": POLL_S}, name="metrics", daemon=True)
    thread.start()
    try:
        yield httpd.server_port
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(CLOSE_TIMEOUT_S)
