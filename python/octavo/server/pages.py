"""Static pages: one file each, that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import falcon

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


class PageResource:
    """A page, and a policy that lets nothing run in it but its own script.

    Args:
        name: File in the folder `static`.
    """

    is_open = True
    answers_while_loading = True

    def __init__(self, name: str) -> None:
        self._body = (resources.files("octavo.server") / "static" / name).read_bytes()
        self._policy = content_security_policy(self._body)

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer in every phase."""
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Content-Security-Policy", self._policy)
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.set_header("Referrer-Policy", "no-referrer")
        resp.data = self._body

    on_head = on_get


def content_security_policy(page: bytes) -> str:
    """A policy that names the page's scripts and styles by their hashes."""
    scripts = " ".join(map(_hash, _SCRIPT.findall(page))) or "'none'"
    styles = " ".join(map(_hash, _STYLE.findall(page))) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(content: bytes) -> str:
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return f"'sha256-{digest}'"
