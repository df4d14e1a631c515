"""How both front ends say what a person chose."""

from dspark.config import SamplingChoice, SamplingConfig


def sampling_words(choice: SamplingChoice, own: SamplingConfig | None) -> str:
    """How the answers are sampled; "" where a server decides and does not tell."""
    sampling = choice.over(own or SamplingConfig())
    if own is None and choice.temperature is None:
        return ""
    if sampling.temperature == 0:
        return "greedy"
    words = [f"temperature {sampling.temperature:g}"]
    words += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    words += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    words += [f"seed {choice.seed}"] if choice.seed is not None else []
    return ", ".join(words)
