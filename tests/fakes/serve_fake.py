"""`octavo serve` with tests/fakes/fake_engine_process.py in the place of the engine process."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo.cli.main import build_parser
from octavo.config import ServeConfig
from octavo.server.launch import launch

if __name__ == "__main__":
    arguments = build_parser("serve").parse_args(["serve", *sys.argv[1:]])
    engine = Path(__file__).with_name("fake_engine_process.py")
    launch(ServeConfig.from_cli_args(arguments), command=(sys.executable, str(engine)))
