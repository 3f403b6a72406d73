"""The Tornado applications of the operators' port: which handler answers which path."""

from __future__ import annotations

import logging
from typing import Any

from tornado.web import Application, RequestHandler

from threadbridge.admin import handlers, peer_handlers
from threadbridge.admin.access import Access
from threadbridge.admin.console import Console

logger = logging.getLogger("threadbridge.admin")


def public_application(console: Console, access: Access) -> Application:
    """The application for operators, their programs and peers on other hosts, by TCP."""
    parameters = {"console": console, "access": access}
    return _application(
        parameters,
        [
            (r"/", handlers.PageHandler, parameters),
            (r"/login", handlers.LoginHandler, parameters),
            (r"/events", handlers.EventsHandler, parameters),
            (r"/requests\.json", handlers.RequestsHandler, parameters),
            (r"/requests/([^/]+)/cancel", handlers.CancelHandler, parameters),
            (r"/healthz", handlers.HealthHandler, parameters),
            (r"/readyz", handlers.ReadyHandler, parameters),
            (r"/metrics", handlers.MetricsHandler, parameters),
            (r"/threads", handlers.ThreadsHandler, parameters),
            (r"/local/processes\.json", peer_handlers.HostProcessesHandler, parameters),
            (r"/local/requests/([^/]+)/cancel", peer_handlers.HostCancelHandler, parameters),
            (r"/static/([a-z]+\.[a-z]+)", handlers.FileHandler, {"path": str(handlers.PAGES)}),
        ],
        cookie_secret=access.cookie_secret,
    )


def local_application(console: Console, access: Access) -> Application:
    """The application for other processes of the same user, by a Unix socket."""
    parameters = {"console": console, "access": access}
    return _application(
        parameters,
        [
            (r"/local/processes\.json", peer_handlers.LocalProcessesHandler, parameters),
            (r"/local/requests/([^/]+)/cancel", peer_handlers.LocalCancelHandler, parameters),
            (r"/local/metrics", peer_handlers.LocalMetricsHandler, parameters),
            (r"/local/threads", peer_handlers.LocalThreadsHandler, parameters),
            (r"/local/ready\.json", peer_handlers.LocalReadyHandler, parameters),
        ],
    )


def _application(parameters: dict[str, Any], routes: list[Any], **settings: Any) -> Application:
    return Application(
        routes,
        default_handler_class=handlers.MissingHandler,
        default_handler_args=parameters,
        log_function=_log,
        **settings,
    )


def _log(handler: RequestHandler) -> None:
    # Kept out of the application's access log. 503 from /readyz is logged where it is found.
    is_fault = handler.get_status() >= 500 and not isinstance(handler, handlers.ReadyHandler)
    level = logging.ERROR if is_fault else logging.DEBUG
    logger.log(level, "%d %s %s", handler.get_status(), handler.request.method, handler.request.path)
