"""What the numbers are meant to be: at most these, each against bare AdamW in the same run."""

from __future__ import annotations

from typing import Any

from cases import Case

_UPDATE = {"prune": 3.0, "rewire": 5.0, "nm": 1.5}
_RANDOM_INIT = {"resnet50": 0.5, "gpt2": 2.5}  # seconds, compilation included
_RIGL_COMPILES = {"resnet50": 3.0, "gpt2": 4.0, "leaves-1000": 15.0}  # seconds


def targets(case: Case, tree: dict[str, Any], platform: str) -> dict[str, float]:
    """The targets of one case on one tree (its `facts`): field of its row -> the most it may be.

    On a CPU they hold for the two trees of real size; smaller and larger ones show the growth. For SET no target of
    its own was set; RigL's is used. Of memory, one mask is taken as one byte for each prunable weight.
    """
    if case.family == "bare" or case.library != "sparsejax":
        return {}
    name, found = tree["name"].split()[0], {}
    if platform != "cpu" or name in _RANDOM_INIT:
        if case.changes != "always":
            found["ordinary"] = 1.05 if platform == "cpu" else 1.03
        if case.family in _UPDATE:
            found["update"] = _UPDATE[case.family]
        found["temp_bytes"] = tree["prunable_weights"] + tree["largest_leaf_bytes"]
        found["mask_bytes_per_weight"] = 1.0
    if platform == "cpu":
        if case.random and name in _RANDOM_INIT:
            found["init_seconds"] = _RANDOM_INIT[name]
        if case.name == "rigl" and name in _RIGL_COMPILES:
            found["compile_seconds"] = _RIGL_COMPILES[name]
    return found
