"""GET /version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.server.openapi import Operation
from octavo.version import __version__

if TYPE_CHECKING:
    import falcon


class VersionResource:
    """The version that runs."""

    is_open = True
    answers_while_loading = True

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="The version that runs")
    }

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer at once, in every phase."""
        resp.data = msgspec.json.encode({"version": __version__})

    on_head = on_get
