"""The answers that a grafting still has to write."""

from collections.abc import Set

from dspark.graft.data.write_answers import Fitting, fitting_prompts
from dspark.graft.job import GraftJob
from dspark.text.stream import TextCodec


def missing_prompts(job: GraftJob, answered: Set[str]) -> Fitting:
    """Of the listed prompts, except those too long for an answer."""
    missing = [prompt for prompt in job.source.read().prompts if prompt not in answered]
    codec = TextCodec.from_directory(job.base.target) if missing else None
    return fitting_prompts(codec, missing, job.config.length // 2)


def own_missing(job: GraftJob, answered: Set[str]) -> int:
    """Of the prompts that the target writes itself; an upper bound, as some attempts fail."""
    if not job.source.num_self_written:
        return 0
    num_own = len(answered - set(job.source.read().prompts))
    return max(job.source.num_self_written - num_own, 0)
