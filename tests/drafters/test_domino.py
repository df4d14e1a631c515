"""Domino: its GRU is torch's, training sees what decoding sees, its block is the reference's."""

import json
from dataclasses import fields, replace

import pytest
import torch

from dspark.checkpoints.convert import convert_head
from dspark.checkpoints.deepspec import read_draft, write_head
from dspark.checkpoints.detect import Packaging
from dspark.checkpoints.domino_config import DominoConfig
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.heads import find_head
from dspark.drafters.domino import DominoDrafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.training_blocks import block_hidden, sample_blocks
from dspark.errors import CheckpointError
from dspark.models.domino_head import DominoHead, PrefixGRU
from tests.conformance import reference_heads as reference
from tests.drafters.test_dflash2 import EMBEDDING, OUTPUT, Greedy, proposed
from tests.drafters.test_dflash2 import TOY as DFLASH2
from tests.engine.pairs import GOLDEN

SHARED = {field.name: getattr(DFLASH2, field.name) for field in fields(DSparkConfig)}
TOY = DominoConfig(
    **SHARED | {"sample_from_anchor": True}, projector_width=6, gru_width=10, prefix_length=1
)
NOT_SHIFTED = replace(TOY, sample_from_anchor=False)


def random_head(config: DominoConfig) -> DominoHead:
    head = DominoHead(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(0.0, 0.4, generator=generator)
    return head


def drafter_of(config: DominoConfig, head: DominoHead) -> DominoDrafter:
    return DominoDrafter(config, head.state_dict(), EMBEDDING, OUTPUT, prepack=False)


def test_the_gru_is_that_of_torch():
    ours = random_head(TOY).prefix_gru
    assert isinstance(ours, PrefixGRU)
    theirs = torch.nn.GRU(16, 10, bias=False, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(3, 5, 16), torch.zeros(3, 10)
    with torch.no_grad():
        expected = theirs(x)[0]
        for k in range(5):
            state = ours(x[:, k], state)
            torch.testing.assert_close(state, expected[:, k])


@pytest.mark.parametrize("config", [TOY, NOT_SHIFTED, replace(TOY, prefix_length=0)])
def test_training_sees_what_decoding_sees(config):
    """The teacher-forced pass and the walk token by token have the same logits."""
    head = random_head(config)
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(20, (14,), generator=generator)
    taps = torch.randn(14, config.tap_width, generator=generator)
    blocks = sample_blocks(ids, 2, 6, config.block_size, generator)
    drafter = drafter_of(config, head)
    with torch.no_grad():
        hidden = block_hidden(head, head.rotary_table(), EMBEDDING, taps, blocks)
        features = head.block_features(hidden, EMBEDDING[blocks.previous])
        logits = OUTPUT(hidden) + head.embed_proj[2](features)
        for index, anchor in enumerate(blocks.anchors.tolist()):
            slot = drafter.open()
            drafter.extend([slot], [ids[:anchor]], [taps[:anchor]])
            chooser = _Forced(blocks.labels[index].tolist())
            drafter.propose([slot], ids[anchor : anchor + 1], chooser)
            shown = torch.cat(chooser.shown)
            torch.testing.assert_close(logits[index], shown, rtol=1e-4, atol=1e-4)


class _Forced(Greedy):
    def __init__(self, tokens):
        super().__init__()
        self._tokens = iter(tokens)

    def choose(self, logits, token_ids=None):
        super().choose(logits)
        return torch.tensor([next(self._tokens)]), [None]


@pytest.mark.parametrize("is_shifted", [True, False])
@pytest.mark.parametrize("lengths", [[30], [6, 41, 1]])
def test_a_block_is_the_one_of_the_published_description(lengths, is_shifted, tmp_path):
    raw = json.loads((GOLDEN / "domino" / "draft" / "config.json").read_text())
    raw["dflash_config"]["shift_label"] = is_shifted
    _, tensors = read_draft(GOLDEN / "domino" / "draft")
    config = DominoConfig.from_json(raw)
    assert (config.block_size, config.block_rows) == (7 if is_shifted else 6, 7)
    seeded = torch.Generator().manual_seed(3)
    embedding, weight = (torch.randn(65, 48, generator=seeded) for _ in range(2))
    output = torch.nn.Linear(48, 65, bias=False).requires_grad_(False)
    output.weight.copy_(weight)
    drafted = proposed(DominoDrafter(config, dict(tensors), embedding, output), lengths, Greedy())
    generator = torch.Generator().manual_seed(7)
    for row, length in enumerate(lengths):
        taps = torch.randn(length, config.tap_width, generator=generator)
        tables = {"embedding": embedding, "head": weight}
        path = reference.domino_draft(raw, tensors, tables, taps, length, 3 + row)
        assert drafted.token_ids[row].tolist() == path


def test_a_head_that_was_just_begun_is_dflash_to_the_bit():
    head = random_head(TOY)
    head.begin(torch.Generator().manual_seed(0))
    plain = DSparkConfig(**SHARED | {"sample_from_anchor": True})
    own = ("prefix_gru", "embed_proj")
    state = {n: t for n, t in head.state_dict().items() if not n.startswith(own)}
    dflash = DSparkDrafter(plain, state, EMBEDDING, OUTPUT, prepack=False)
    ours, theirs = Greedy(), Greedy()
    proposed(drafter_of(TOY, head), [5, 9], ours)
    proposed(dflash, [5, 9], theirs)
    assert torch.equal(torch.stack(ours.shown), torch.stack(theirs.shown))


def test_files_are_read_written_and_checked(tmp_path):
    folder = GOLDEN / "domino" / "draft"
    config, tensors = read_draft(folder)
    assert find_head(folder).packaging is Packaging.DFLASH
    assert isinstance(config, DominoConfig) and config.sample_from_anchor
    convert_head(folder, tmp_path / "copy", "dflash")
    again = read_draft(tmp_path / "copy")
    assert again[0] == config and all(torch.equal(again[1][n], t) for n, t in tensors.items())
    with pytest.raises(CheckpointError, match="Domino"):
        convert_head(folder, tmp_path / "out", "speculators")
    raw = json.loads((folder / "config.json").read_text())
    raw["architectures"] = ["DFlashDraftModel"]  # as its authors' class is called
    (tmp_path / "copy" / "config.json").write_text(json.dumps(raw))
    assert read_draft(tmp_path / "copy")[0] == config
    del tensors["prefix_gru.weight_hh_l0"]
    with pytest.raises(CheckpointError, match="weight_hh_l0"):
        write_head(tmp_path / "less", config, tensors, {})
