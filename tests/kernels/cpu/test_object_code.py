"""Compiled kernels are kept, found again, and made again where they are damaged."""

import pytest
import torch

from dspark_kernels.cpu import object_code
from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.rounded import round_rows, round_rows_reference
from dspark_kernels.cpu.runtime import Runtime, using


@pytest.fixture
def variant():
    if not variants():
        pytest.skip("no kernels for this processor")
    return next(iter(variants().values()))


def works(variant, folder) -> bool:
    x = torch.randn(3, 64)
    with using(Runtime(variant, 1, folder)):
        return torch.equal(round_rows(x).data, round_rows_reference(x).data)


@pytest.fixture
def compiled(monkeypatch):
    """How often LLVM compiled."""
    counted = []
    compile_it = object_code._compile
    monkeypatch.setattr(
        object_code, "_compile", lambda *given: (counted.append(1), compile_it(*given))[1]
    )
    return counted


def test_what_was_compiled_is_found_again(variant, tmp_path, compiled):
    folder = tmp_path / "kernels" / "cpu"
    assert works(variant, folder)
    num_compiled = len(compiled)
    assert num_compiled == len(list(folder.iterdir())) > 0  # and nothing half-written
    assert works(variant, folder)
    assert len(compiled) == num_compiled


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"?" + b[41:]]
)
def test_a_damaged_object_is_compiled_again(variant, tmp_path, compiled, damage):
    assert works(variant, tmp_path)
    num_compiled = len(compiled)
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert works(variant, tmp_path)
    assert len(compiled) == 2 * num_compiled
    assert works(variant, tmp_path)
    assert len(compiled) == 2 * num_compiled


def test_a_folder_that_cannot_be_written_is_no_obstacle(variant, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert works(variant, blocked / "kernels")


def test_variants_do_not_share_objects(tmp_path):
    for variant in variants().values():
        assert works(variant, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 2 * len(variants())
