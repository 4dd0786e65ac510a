"""Made-up usage reports, good and bad, through the public port: the gateway answers them as the OpenAPI document says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.daemon import Daemon

EXAMPLES = os.environ.get("LAVA_FUZZ_EXAMPLES", "6")
# Not what no schema can say: a customer and a meter must be there, and a report's unknown members are ignored. Nor `Allow`: what is
# a batch to POST is to GET the request whose id is "batch".
EXCLUDED = "positive_data_acceptance,negative_data_rejection,allow_header_conformance"


def test_every_answer_to_made_up_reports_is_as_the_document_says(daemon: Daemon, tmp_path: Path) -> None:
    """No 5xx, no undocumented status, no body that the schema does not describe; and the books are right afterwards."""
    document = daemon.base_url.removesuffix("v1/") + "openapi.json"
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", document,
            "--include-operation-id", "post_requests",
            "--include-operation-id", "post_requests_batch",
            "--exclude-checks", EXCLUDED, "--seed", "20260101", "--generation-database", "none",
            "--workers", "1", "--no-color", "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES,
            "--header", f"Authorization: Bearer {daemon.info['secret_key']}",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    daemon.audit()
