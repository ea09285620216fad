"""The log of a run has a line for each report, whenever the run was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import open_run, train

from gpt2cli.training.log import Log


def figures(log: Log) -> list[tuple[int, float | None, float | None]]:
    return [(r["step"], r["loss"], r["val_loss"]) for r in log.records]


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
@pytest.mark.parametrize("killed_at", [3, 5])  # 5 is saved before it can be told
def test_a_kill_between_state_and_log_loses_no_line(
    tmp_path: Path, name: str, killed_at: int
) -> None:
    _, reports = train(tmp_path / "whole")
    parts = tmp_path / "parts"
    train(parts, stop_after=2)
    with open_run(parts, resume=True) as run:
        log = Log(tmp_path / name, run.position)
        for report in run.run():
            if report.step == killed_at:
                break
            log.write(report)
    with open_run(parts, resume=True) as run:
        log = Log(tmp_path / name, run.position)
        for report in run.run():
            log.write(report)
    again = Log(tmp_path / name, run.position)
    assert figures(again) == figures(log)
    assert figures(log) == [(r.step, r.loss, r.val_loss) for r in reports if r.step > 2]
