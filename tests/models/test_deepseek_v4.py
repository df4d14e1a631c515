"""What DeepSeek-V4's blocks round."""

import torch

from dspark.models.deepseek_v4.window_attention import fake_quantize_e4m3


def test_fake_quantisation_keeps_what_e4m3_can_say_and_rounds_the_rest() -> None:
    exact = torch.tensor([448.0, -1.0, 0.5, 0.0] * 16)
    assert torch.equal(fake_quantize_e4m3(exact, 64), exact)
    assert torch.equal(fake_quantize_e4m3(exact / 4.0, 64), exact / 4.0)
    # 449 needs the scale 2: 449 / 2 = 224.5 lies between 224 and 240
    assert fake_quantize_e4m3(torch.tensor([449.0] * 64), 64)[0] == 448.0
    tiny = torch.full((64,), 1e-6)  # the scale stops at the one of 1e-4
    assert fake_quantize_e4m3(tiny, 64)[0] == 4.0 * 2**-22  # 4.19 rounds to 4
