"""One grafting from prompts to a head on disk, as a stream of events.

OUT/config.json and OUT/model.safetensors are the head in DeepSpec's layout, as of the last
checkpoint; OUT/training/ holds the state to resume from and the figures of every step.
"""

import gc
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from dspark.checkpoints.head_configs import config_trained_by
from dspark.config import EngineConfig
from dspark.drafters.kinds import build_head
from dspark.engine.runtime import resolve_runtime
from dspark.graft.data.answer_file import AnswerFile, Split, split
from dspark.graft.data.corpus import CorpusProgress, grow_corpus, open_corpus_session
from dspark.graft.data.missing_answers import missing_prompts
from dspark.graft.data.retokenized_answers import settled_answers
from dspark.graft.data.write_answers import AnswerSettings
from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.head.init_from_head import start_from_head
from dspark.graft.head.init_from_target import start_from_target, start_random
from dspark.graft.head.shape import draft_config, unused_token
from dspark.graft.head.write_head import run_identity, write_trained_head
from dspark.graft.job import GraftEvent, GraftJob, Prepared, Stopped, Validated
from dspark.graft.judge.judge import Trained, judge_head
from dspark.graft.target.frozen_target import load_frozen
from dspark.graft.train import checkpoint
from dspark.graft.train.distributed import join_ranks
from dspark.graft.train.metrics import MetricsFile, step_figures
from dspark.graft.train.out_of_memory import naming_answers_that_fit, naming_what_fits
from dspark.graft.train.precision import product_precision
from dspark.graft.train.trainer import Trainer, trainable
from dspark.plural import counted
from dspark_kernels.host_memory import give_back_freed

MAX_BIGRAM_ANSWERS = 2000
ANSWERS_AT_ONCE = 32  # of them


class GraftRun:
    """Iterate over `events`; `stop` ends it after the current step, from any thread."""

    def __init__(self, job: GraftJob) -> None:
        self.job = job
        self._is_stopping = False
        self._origins: Mapping[str, str] = {}

    def stop(self) -> None:
        self._is_stopping = True

    def events(self) -> Iterator[GraftEvent]:
        """Every process runs the same script, so that collectives cannot part; the first one alone
        writes files and tells more than a stop."""
        device = resolve_runtime(self.job.runtime).device
        self._ranks = join_ranks(device)
        precision = product_precision(self.job.config.precision, device)
        self.job = replace(self.job, config=replace(self.job.config, precision=precision))
        for event in self._events():
            if self._ranks.is_first or isinstance(event, Stopped):
                yield event

    def _is_asked_to_stop(self) -> bool:
        """In any process; all come here after the answers, then before and after each step."""
        is_asked = self._ranks.agree(self._is_stopping)
        if is_asked:
            self._is_stopping = True
        return is_asked

    def _due(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether this step is the last one, and whether its head is validated and written."""
        step, config = trainer.step_index, self.job.config
        is_last = step == config.steps
        return is_last, is_last or step % config.checkpoint_every == 0

    def _events(self) -> Iterator[GraftEvent]:
        if self._ranks.is_first:
            yield from self._grow_corpus()
        if self._is_asked_to_stop():
            yield Stopped(0)
            return
        _release_memory()  # of the corpus session
        trained = yield from self._trained()
        if trained is not None and self._ranks.is_first:
            _release_memory()  # of the frozen target
            yield from judge_head(self.job, trained, self._origins)

    def _trained(self) -> Generator[GraftEvent, None, Trained | None]:
        """Everything that needs the frozen target; None if stopped."""
        job = self.job
        settled = settled_answers(job.data, job.base.target)
        if settled.notes:
            count = len(settled.answers)
            yield CorpusProgress("reading answers", count, count, settled.notes)
        parts = split(settled.answers, job.config.eval_prompts)
        trainer = self._trainer(parts)
        yield from self._settle_taps(trainer, parts)
        identity = run_identity(job, trainer.head.config)
        if job.resume and job.state_path.exists():
            if num_new := checkpoint.load(job.state_path, trainer, identity):
                note = f"{counted(num_new, 'new answer')} since step {trainer.step_index}"
                count = len(trainer.answers)
                yield CorpusProgress("reading answers", count, count, (note,))
        elif self._ranks.is_first:  # the others get the first weights with the first step
            yield from self._start(trainer)
        if self._is_asked_to_stop():
            yield Stopped(trainer.step_index)
            return None
        yield _prepared(trainer, parts)
        yield from self._train(trainer, parts, identity)
        if self._is_stopping and trainer.step_index < job.config.steps:
            yield Stopped(trainer.step_index)
            return None
        return self._finished(trainer, parts)

    def _train(self, trainer: Trainer, parts: Split, identity: str) -> Iterator[GraftEvent]:
        """Steps up to the last one, or up to a stop, with a state to go on from."""
        job, is_first = self.job, self._ranks.is_first
        with (
            naming_what_fits(job.config, job.state_path),
            MetricsFile(job.metrics_path, trainer.step_index, writes=is_first) as metrics,
        ):
            for report in trainer.steps():
                metrics.write("step", step_figures(report))
                yield report
                if trainer.target.cache and (notes := trainer.target.cache.take_note()):
                    yield CorpusProgress("keeping taps", 1, 1, notes)
                is_stopping, (is_last, is_due) = self._is_asked_to_stop(), self._due(trainer)
                # the head before the state: a run that resumes from a state finds its head
                validated = self._validate(trainer, parts, metrics) if is_due else None
                if is_due or is_stopping:
                    checkpoint.save(job.state_path, trainer, identity)
                if validated is not None:
                    yield validated
                if is_stopping and not is_last:
                    return

    def _finished(self, trainer: Trainer, parts: Split) -> Trained:
        """The head on disk as it was trained, whatever an earlier run made of it."""
        self._write_head(trainer, {})
        self._ranks.leave()
        tables = None
        if self.job.full_head:
            tables = _stored(trainer.target.embedding), _stored(trainer.target.output_head)
        return Trained(tuple(parts.held_out), trainer.step_index, tables)

    def _write_head(self, trainer: Trainer, figures: dict[str, Any]) -> None:
        weights = trainer.final_weights()  # gathered from every process
        if self._ranks.is_first:
            write_trained_head(self.job, trainer, weights, figures)

    def _grow_corpus(self) -> Iterator[CorpusProgress]:
        job, config = self.job, self.job.config
        if job.source.is_empty:
            return
        listed = job.source.read()
        self._origins = listed.origins
        if listed.notes:
            count = len(listed.prompts)
            yield CorpusProgress("reading prompts", count, count, listed.notes)
        answered = {answer.prompt for answer in AnswerFile(job.data).read()}
        missing = missing_prompts(job, answered)
        if not (missing.prompts or job.source.num_self_written):
            if not answered:
                missing.require_some()
            if missing.notes:
                count = len(answered)
                yield CorpusProgress("reading prompts", count, count, missing.notes)
            AnswerFile(job.data).sort()
            return
        longest = config.length // 2
        reach = longest + config.max_answer_tokens
        heads = (job.init_from, job.out)
        engine = EngineConfig(max_requests=config.answers_at_once, prefix_cache_bytes=0)
        session = open_corpus_session(job.base, job.runtime, heads, reach, engine)
        settings = AnswerSettings(config.max_answer_tokens, config.answer_temperature, config.seed)
        grown = grow_corpus(session, job.source, listed, job.data, settings, longest)
        with naming_answers_that_fit(config.answers_at_once):
            for progress in grown:
                yield progress
                if self._is_stopping:
                    break
        session.close()

    def _trainer(self, parts: Split) -> Trainer:
        job, config = self.job, self.job.config
        runtime = resolve_runtime(job.runtime)
        target = load_frozen(
            job.base.target,
            device=torch.device(runtime.device),
            dtype=getattr(torch, runtime.dtype),
            memory_bytes=int(config.tap_memory_gib * 2**30),
            precision=config.precision,
        )
        mask = config.mask_token_id
        if not config_trained_by(config.algorithm).has_mask:
            mask = 0
        elif mask is None:
            used = {i for a in (*parts.train, *parts.held_out) for i in a.token_ids}
            mask = unused_token(job.base.target, used)
        shape = draft_config(target.config, config, mask)
        target.tap(shape.target_layer_ids)
        return Trainer(
            build_head(shape).to(runtime.device), target, parts.train, config, self._ranks
        )

    def _settle_taps(self, trainer: Trainer, parts: Split) -> Iterator[CorpusProgress]:
        job, target = self.job, trainer.target
        held_out = trainable(parts.held_out, job.config.length)
        sequences = [answer.token_ids for answer in (*trainer.answers, *held_out)]
        if job.tap_cache is None and not target.fit(sum(map(len, sequences))):
            note = "the taps do not fit into --tap-memory: computed as it goes, every epoch"
            yield CorpusProgress("reading answers", len(sequences), len(sequences), (note,))
            return
        if self._ranks.count == 1:  # each of several would make most views for itself
            target.keep_together(sequences)
        if job.tap_cache is None:
            return
        # a state is written next to the previous one: weights and two moments in float32
        reserve = 6 * sum(parameter.nbytes for parameter in trainer.head.parameters())
        note = target.keep_on_disk(job.tap_cache, job.base.target, sequences, reserve)
        yield CorpusProgress("opening the tap cache", 1, 1, (note,))

    def _start(self, trainer: Trainer) -> Iterator[CorpusProgress]:
        job, target = self.job, trainer.target
        generator = torch.Generator().manual_seed(job.config.seed)
        if job.init_from is not None:
            notes = start_from_head(trainer.head, job.init_from, generator)
            yield CorpusProgress("starting from a head", 1, 1, notes)
        elif job.config.init == "random":
            start_random(trainer.head, generator)
        else:
            bigrams = Bigrams(target)
            has_table = trainer.head.markov_head is not None
            read = trainer.answers[: MAX_BIGRAM_ANSWERS if has_table else 0]
            for done, answer in enumerate(read, start=1):
                if done % ANSWERS_AT_ONCE == 1:
                    target.read(each.token_ids for each in read[done - 1 :][:ANSWERS_AT_ONCE])
                bigrams.add(answer)
                yield CorpusProgress("reading the target's bigrams", done, len(read))
                if self._is_stopping:
                    return
            notes = start_from_target(trainer.head, target, bigrams, generator)
            yield CorpusProgress("starting from the target", 1, 1, notes)

    def _validate(self, trainer: Trainer, parts: Split, metrics: MetricsFile) -> Validated:
        report = trainer.validate(parts.held_out)
        metrics.write("held_out", asdict(report))
        self._write_head(trainer, {"held_out_tau_sampled": round(report.tau, 4)})
        return Validated(report)


def _stored(table: torch.Tensor) -> torch.Tensor:
    """As a head's files hold it, apart from the target's weights."""
    return table.detach().to("cpu", torch.bfloat16, copy=True)


def _release_memory() -> None:
    """Models hold themselves in circles (hooks, caches), which only the collector frees."""
    gc.collect()
    give_back_freed()


def _prepared(trainer: Trainer, parts: Split) -> Prepared:
    return Prepared(
        head=trainer.head.config,
        parameters=sum(p.numel() for p in trainer.head.parameters()),
        answers=len(trainer.answers),
        held_out=len(parts.held_out),
        first_step=trainer.step_index,
    )
