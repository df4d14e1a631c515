"""One grafting from prompts to a head on disk, told as it goes.

OUT/config.json and OUT/model.safetensors are the head in DeepSpec's layout, as of the last
checkpoint; OUT/training/ holds the state to go on from and the figures of every step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch

from dspark.checkpoints.head_configs import config_trained_by
from dspark.config import EngineConfig
from dspark.drafters.kinds import build_head
from dspark.engine.session import resolve_runtime
from dspark.graft.data.answer_file import AnswerFile, Split, split
from dspark.graft.data.corpus import CorpusProgress, grow_corpus, open_corpus_session
from dspark.graft.data.missing_answers import missing_prompts
from dspark.graft.data.retokenized_answers import Settled, settled_answers
from dspark.graft.data.write_answers import AnswerSettings
from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.head.init_from_head import start_from_head
from dspark.graft.head.init_from_target import start_from_target, start_random
from dspark.graft.head.shape import draft_config, unused_token
from dspark.graft.head.write_head import (
    Weights,
    run_identity,
    store_shared_weights,
    write_trained_head,
)
from dspark.graft.job import GraftEvent, GraftJob, Prepared, Stopped, Validated
from dspark.graft.judge.acceptance import Evaluation, evaluate
from dspark.graft.judge.calibrate import Calibrated, calibrate_head
from dspark.graft.judge.model_card import Base, write_card
from dspark.graft.judge.speedup import Speedup, choose_prompts, measure_head
from dspark.graft.target.frozen_target import load_frozen
from dspark.graft.train import checkpoint
from dspark.graft.train.distributed import join_ranks
from dspark.graft.train.metrics import MetricsFile, step_figures
from dspark.graft.train.out_of_memory import naming_answers_that_fit, naming_what_fits
from dspark.graft.train.trainer import Trainer, trainable
from dspark.hub.catalog.pairs import PairFiles

EVALUATION_TOKENS = 128
MAX_BIGRAM_ANSWERS = 2000


class GraftRun:
    """Iterate over `events`; `stop` ends it after the step under way, from any thread."""

    def __init__(self, job: GraftJob) -> None:
        self.job = job
        self._is_stopping = False
        self._origins: Mapping[str, str] = {}

    def stop(self) -> None:
        self._is_stopping = True

    def events(self) -> Iterator[GraftEvent]:
        """Of the first process; others take part in the steps, and tell of a stop alone."""
        self._ranks = join_ranks(resolve_runtime(self.job.runtime).device)
        yield from self._events() if self._ranks.index == 0 else self._follow()

    def _follow(self) -> Iterator[GraftEvent]:
        """Writes nothing, but gathers what is written: a head in shards takes every process.

        The head's first weights come with the first step.
        """
        if not self._is_asked_to_stop():
            parts = self._split(settled_answers(self.job.data, self.job.base.target))
            trainer = self._trainer(parts)
            for _ in self._open_tap_cache(trainer, parts):
                pass
            identity = run_identity(self.job, trainer.head.config, parts)
            if self.job.resume and self.job.state_path.exists():
                checkpoint.load(self.job.state_path, trainer, identity)
            if not self._is_asked_to_stop():
                for _ in trainer.steps():
                    is_stopping, (is_last, is_due) = self._is_asked_to_stop(), self._due(trainer)
                    if is_due:
                        trainer.validate(parts.held_out)
                        trainer.weights()
                    if is_due or is_stopping:
                        checkpoint.save(self.job.state_path, trainer, identity)
                    if is_stopping and not is_last:
                        break
                else:
                    trainer.weights()
                    self._ranks.leave()
                    return
        yield Stopped(0)

    def _split(self, settled: Settled) -> Split:
        return split(settled.answers, self.job.config.eval_prompts)

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
        yield from self._grow_corpus()
        if self._is_asked_to_stop():
            yield Stopped(0)
            return
        settled = settled_answers(self.job.data, self.job.base.target)
        if settled.notes:
            count = len(settled.answers)
            yield CorpusProgress("reading answers", count, count, settled.notes)
        parts = self._split(settled)
        trainer = self._trainer(parts)
        yield from self._open_tap_cache(trainer, parts)
        identity = run_identity(self.job, trainer.head.config, parts)
        if self.job.resume and self.job.state_path.exists():
            checkpoint.load(self.job.state_path, trainer, identity)
        else:
            yield from self._start(trainer)
        if self._is_asked_to_stop():
            yield Stopped(trainer.step_index)
            return
        yield _prepared(trainer, parts)
        yield from self._train(trainer, parts, identity)
        if self._is_stopping and trainer.step_index < self.job.config.steps:
            yield Stopped(trainer.step_index)
        else:
            yield from self._judge(trainer, parts)

    def _train(self, trainer: Trainer, parts: Split, identity: str) -> Iterator[GraftEvent]:
        """Steps up to the last one, or up to a stop, with a state to go on from."""
        job = self.job
        with (
            naming_what_fits(job.config, job.state_path),
            MetricsFile(job.metrics_path, trainer.step_index) as metrics,
        ):
            for report in trainer.steps():
                metrics.write("step", step_figures(report))
                yield report
                if trainer.target.cache and (notes := trainer.target.cache.take_note()):
                    yield CorpusProgress("keeping taps", 1, 1, notes)
                is_stopping, (is_last, is_due) = self._is_asked_to_stop(), self._due(trainer)
                # the head before the state: a run that goes on from a state finds its head
                validated = self._validate(trainer, parts, metrics) if is_due else None
                if is_due or is_stopping:
                    checkpoint.save(job.state_path, trainer, identity)
                if validated is not None:
                    yield validated
                if is_stopping and not is_last:
                    return

    def _judge(self, trainer: Trainer, parts: Split) -> Iterator[GraftEvent]:
        """What the head is worth: decoding, calibration, speed-up, card."""
        weights = trainer.weights()
        self._ranks.leave()
        yield CorpusProgress("decoding held-out prompts", 0, 1)
        evaluation = self._evaluate(trainer, weights, parts)
        yield evaluation
        yield CorpusProgress("calibrating the confidences", 0, 1)
        yield from self._calibrate(trainer, parts)
        if self.job.full_head:
            store_shared_weights(self.job.out, trainer.target.embedding, trainer.target.output_head)
        yield from self._measure(parts, evaluation)
        write_card(self.job.out, Base.of(self.job.base), self.job.licence)

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
        # too many answers for the memory are told, not written one by one in silence
        engine = EngineConfig(max_requests=config.answers_at_once, isolates_failures=False)
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

    def _open_tap_cache(self, trainer: Trainer, parts: Split) -> Iterator[CorpusProgress]:
        job = self.job
        if job.tap_cache is None:
            return
        held_out = trainable(parts.held_out, job.config.length)
        sequences = [answer.token_ids for answer in (*trainer.answers, *held_out)]
        # a state is written beside the one before it: weights and two moments in float32
        reserve = 6 * sum(parameter.nbytes for parameter in trainer.head.parameters())
        note = trainer.target.keep_on_disk(job.tap_cache, job.base.target, sequences, reserve)
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
                bigrams.add(answer)
                yield CorpusProgress("reading the target's bigrams", done, len(read))
                if self._is_stopping:
                    return
            notes = start_from_target(trainer.head, target, bigrams, generator)
            yield CorpusProgress("starting from the target", 1, 1, notes)

    def _validate(self, trainer: Trainer, parts: Split, metrics: MetricsFile) -> Validated:
        report = trainer.validate(parts.held_out)
        metrics.write("held_out", asdict(report))
        figures = {"held_out_tau_sampled": round(report.tau, 4)}
        write_trained_head(self.job, trainer, trainer.weights(), figures)
        return Validated(report)

    def _evaluate(self, trainer: Trainer, weights: Weights, parts: Split) -> Evaluation:
        job = self.job
        files = PairFiles(job.base.name, job.base.target, job.out)
        prompts = [answer.prompt_ids for answer in parts.held_out]
        result = evaluate(files, prompts, EVALUATION_TOKENS, job.runtime)
        rates = [round(rate, 4) for rate in result.acceptance_by_position]
        write_trained_head(
            job,
            trainer,
            weights,
            {
                "tau_greedy": round(result.tau, 4),
                "acceptance_by_position": rates,
                "held_out_prompts": result.prompts,
                "rounds": result.rounds,
            },
        )
        return result

    def _calibrate(self, trainer: Trainer, parts: Split) -> Iterator[Calibrated]:
        """Nothing where too few rounds were decoded to judge the confidences by."""
        job = self.job
        files = PairFiles(job.base.name, job.base.target, job.out)
        prompts = [answer.prompt_ids for answer in parts.held_out]
        result = calibrate_head(files, prompts, EVALUATION_TOKENS, job.runtime)
        if result is not None:
            with MetricsFile(job.metrics_path, trainer.step_index) as metrics:
                metrics.write("calibration", {"step": trainer.step_index, **asdict(result)})
            yield result

    def _measure(self, parts: Split, own: Evaluation) -> Iterator[CorpusProgress | Speedup]:
        """With the schedule that a user gets; against the released head where there is one."""
        job = self.job
        if job.measurement is None:
            return
        released = None
        if job.released is not None:
            yield CorpusProgress("decoding with the released head", 0, 1)
            files = PairFiles(job.base.name, job.base.target, job.released)
            prompts = [answer.prompt_ids for answer in parts.held_out]
            released = evaluate(files, prompts, EVALUATION_TOKENS, job.runtime)
        yield (
            yield from measure_head(
                PairFiles(job.base.name, job.base.target, job.out),
                choose_prompts(parts.held_out, self._origins),
                own,
                released,
                job.measurement,
                job.runtime,
                job.command,
            )
        )


def _prepared(trainer: Trainer, parts: Split) -> Prepared:
    return Prepared(
        head=trainer.head.config,
        parameters=sum(p.numel() for p in trainer.head.parameters()),
        answers=len(trainer.answers),
        held_out=len(parts.held_out),
        first_step=trainer.step_index,
    )
