"""Ranks: from the environment, their shares of the work, their devices, and a process group that is joined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from camhook.distributed import Ranks
from camhook.errors import CamhookError


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4)),
        ({"RANK": "4", "WORLD_SIZE": "4"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "one"}, None),
    ],
)
def test_ranks_of_the_environment(environment: dict[str, str], expected: tuple[int, int] | None) -> None:
    if expected is None:
        with pytest.raises(CamhookError, match="in the environment"):
            Ranks.from_environment(environment)
        return
    ranks = Ranks.from_environment(environment)
    assert (ranks.rank, ranks.world) == expected


def test_shares_are_all_of_it_and_have_nothing_in_common() -> None:
    items = list(range(11))
    shares = [Ranks(rank, 4).of(items) for rank in range(4)]
    assert sorted(item for share in shares for item in share) == items


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(CamhookError, match=r"--device .* cannot be used: .*Pass cpu, cuda"):
        Ranks().device_for("cuda:99")
    with pytest.raises(CamhookError, match="cannot be used"):
        Ranks().device_for("tpu-of-mine")
    assert Ranks(local_rank=1).device_for("cpu") == "cpu"


def test_a_single_rank_needs_no_process_group() -> None:
    with Ranks().joined("cpu") as ranks:
        assert not dist.is_initialized()
        assert ranks.gathered("mine") == ["mine"]
        assert ranks.sum_(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
        ranks.wait()
    assert Ranks.of_process_group() == Ranks()


def test_ranks_without_a_process_group_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    Ranks(1, 3).wait()
    assert not dist.is_initialized()


def test_a_process_group_that_is_there_is_used_and_left(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        with Ranks(2, 5).joined("cpu") as ranks:
            assert (ranks.rank, ranks.world) == (0, 1)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
