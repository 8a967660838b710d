"""Settings for `gunicorn -c python:octavo.server.gunicorn_conf octavo.server.wsgi:app`.

The server is configured by OCTAVO_* variables, or by the file that OCTAVO_CONFIG names.
"""

from __future__ import annotations

import sys

from octavo import logs
from octavo.config import from_environment
from octavo.errors import OctavoError
from octavo.server.gunicorn_settings import gunicorn_settings

try:
    _config = from_environment()
    logs.configure(_config)
except OctavoError as error:
    sys.stderr.write(f"ERROR:    {error}\n")
    sys.exit(error.exit_code)

globals().update(gunicorn_settings(_config))
