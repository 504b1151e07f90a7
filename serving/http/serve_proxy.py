"""What Kitae adds to Serve's proxies. Ray imports it into each of them.

RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.http.serve_proxy:middlewares
"""

from __future__ import annotations

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from serving.http.proxy_health import ProxyHealth


def middlewares() -> list[Middleware]:
    """For a cluster: the deadline for headers, and 503 while no process of the endpoint answers."""
    return [*header_deadline(), Middleware(ProxyHealth)]


def header_deadline() -> list[Middleware]:
    """For one machine, where a loaded endpoint answers late and is not gone: the deadline for headers alone."""
    HTTP_PROTOCOLS["auto"] = "serving.http.header_deadline:HeaderDeadline"
    return []
