"""Requests at random, made by schemathesis from /openapi.json, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY
from servers import command

pytest.importorskip("schemathesis")  # which needs Python 3.11
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Of a request for completions that its schema allows, `schema_checks` says why it may be refused.
CONFIG = """
request-timeout = 60.0

[[operations]]
include-path = "/v1/completions"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]

[[operations]]
include-path-regex = "/page/v1/(score|next|stages|continue)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]
generation.max-examples = 60

[[operations]]
include-path-regex = "/page/v1/(inspect|lens|attention|head|effect|patch)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]
generation.max-examples = 20
"""


@pytest.mark.parametrize("key", [None, "secret"])
def test_the_server_does_what_its_schema_says(key: str | None, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "tests"),
        "SCHEMATHESIS_HOOKS": "schema_checks",
    }
    named = [] if key is None else ["--header", f"Authorization: Bearer {key}"]
    examples = "300" if key is None else "50"
    with command(*([] if key is None else ["--api-key", key])) as server:
        right = {} if key is None else {"Authorization": f"Bearer {key}"}
        body = {"prompt": "a"}  # for which PyTorch is imported
        assert server.ask("/page/v1/attention", body, headers=right).status == 200
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                f"http://127.0.0.1:{server.port}/openapi.json",
                *("--checks", "all", "--phases", "coverage,fuzzing", "--max-examples", examples),
                *("--generation-deterministic", "--continue-on-failure", "--no-color", *named),
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()
        assert "Tested: 20" in done.stdout.decode()
        assert server.process.poll() is None
        assert not [line for line in server.lines if "internal error" in line]
