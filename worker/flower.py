"""Flower with four things mended: its login, what of it is open, what browsers may do with its pages, its environment.

Flower parts FLOWER_BASIC_AUTH at commas, so that half of a password is a login of its own, and fails for everybody once
a password is not ASCII. Here the variable is one login, compared byte by byte. `/metrics`, which names hosts and tasks,
asks for it like every page. Kubernetes tells pods of a service called flower `FLOWER_PORT=tcp://…`, which Flower takes
for a setting of its own and ends; such values are taken away before it looks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import MutableMapping
from typing import Any

LOGIN = "FLOWER_BASIC_AUTH"

# The only script that stands in a page itself, as Tornado's templates write it: whether it refreshes by itself.
_INLINE = ("\nvar autorefresh = 1;\n", "\nvar autorefresh = 0;\n")


def _policy() -> str:
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in _INLINE
    )
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": _policy(),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def clean(environment: MutableMapping[str, str]) -> None:
    """Takes away what Kubernetes says of a service called flower, and names of Flower's settings it cannot mean."""
    for name in [name for name in environment if name.startswith("FLOWER_")]:
        linked = environment[name].startswith(("tcp://", "udp://", "sctp://"))
        if linked or name.startswith(("FLOWER_PORT_", "FLOWER_SERVICE_")):
            del environment[name]


def given(header: str) -> bytes | None:
    """The login in an Authorization header, or None where there is none that can be read."""
    kind, _, rest = header.strip().partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(rest.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def install(environment: MutableMapping[str, str]) -> None:
    """Makes the Flower of this process keep to the above. Before its command begins, which reads this environment."""
    clean(environment)
    import tornado.web
    from flower.views import BaseHandler, monitor

    whole = environment.get(LOGIN, "")
    as_it_was, headers_as_they_were = BaseHandler.get_current_user, BaseHandler.set_default_headers

    def current_user(handler: Any) -> Any:
        logins = [whole] if whole else handler.application.options.basic_auth
        if not logins:
            return as_it_was(handler)
        told = given(handler.request.headers.get("Authorization", ""))
        if told is None or not any(hmac.compare_digest(told, one.encode()) for one in logins):
            raise tornado.web.HTTPError(401)
        return True if not handler.application.options.auth else as_it_was(handler)

    def with_headers(handler: Any) -> None:
        headers_as_they_were(handler)
        _headers(handler)

    BaseHandler.get_current_user = current_user
    BaseHandler.set_default_headers = with_headers
    tornado.web.StaticFileHandler.set_default_headers = _headers  # type: ignore[method-assign,assignment]
    monitor.Metrics.get = tornado.web.authenticated(monitor.Metrics.get)


def _headers(handler: Any) -> None:
    handler.clear_header("Server")
    for name, value in HEADERS.items():
        handler.set_header(name, value)
