"""The job file's sections `data`, `training`, `compute`, `evaluation`, `serving` and `tracking`, and the form of a
name."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, WithJsonSchema

from ray_jobs.spec.cleaning import CleaningPolicy
from ray_jobs.spec.personal_data import PersonalDataPolicy
from ray_jobs.spec.problems import quoted
from ray_jobs.spec.section import SpecSection
from ray_jobs.spec.split import Shares, SplitSection
from ray_jobs.tasks.chat.parsers import ReasoningParser, ToolParser

Precision = Literal["auto", "fp32", "bf16"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?")

NAME_RULE = "lower-case letters, digits, '.', '_' and '-', at most 48, starting and ending with a letter or digit"


def is_name(text: str) -> bool:
    """True if the text is a valid `Name`."""
    return _NAME.fullmatch(text) is not None


def _named(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"is {quoted(text)}; it must be {NAME_RULE}")
    return text


def _dataset_named(text: str) -> str:
    name, at, number = text.partition("@")
    if not is_name(name) or (at and re.fullmatch(r"[1-9][0-9]{0,5}", number) is None):
        raise ValueError(f"is {quoted(text)}; it must be a dataset's name, or NAME@VERSION such as reviews@3")
    return text


DatasetName = Annotated[str, AfterValidator(_dataset_named)]
"""`reviews` or `reviews@3`."""
Name = Annotated[str, AfterValidator(_named), WithJsonSchema({"pattern": f"^{_NAME.pattern}$", "type": "string"})]
"""A name that is valid in a store key, a Serve application and a Kubernetes object: lower case, at most 48 long."""


class RowSource(SpecSection):
    """One source of a mixture."""

    source: str
    """A path, `s3://bucket/key`, folder, prefix or glob, as for `data.train`."""
    max_rows: int | None = Field(None, ge=1)
    """Use at most this many rows of it, chosen by hash (the same each time). None: all."""
    weight: float = Field(1.0, gt=0.0, le=100.0)
    """How often each of its training rows is seen in an epoch: 2 is twice, 0.5 is half of the rows, chosen by hash.
    Validation and test rows count once."""


class DataSection(SpecSection):
    train: str | Annotated[tuple[str | RowSource, ...], Field(min_length=1, max_length=1000)] | None = None
    """Rows to train on: a path or `s3://bucket/key` of a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.xlsx`, `.parquet`,
    `.txt`, `.md` or `.html`; of text also `.gz` and `.zst`), of a folder or prefix, or a glob; or a list of these, each
    perhaps with a limit or a weight, such as `{source: general.jsonl, max_rows: 500}`. Required, unless `dataset` names
    rows."""
    dataset: DatasetName | None = None
    """A dataset of the team to train on, such as `reviews` (its newest version) or `reviews@3`, with its sides. None:
    the rows of `train`."""
    name: Name | None = None
    """Name of the dataset that the rows become a version of. None: the model's name."""
    held_out: str | None = None
    """Rows to validate on, as for `train`, without a list: they steer the training. None: rows of `train`."""
    test: str | None = None
    """Rows to test on, as for `held_out`: only the evaluation that decides reads them. None: rows of `train`."""
    split: SplitSection | None = None
    """How the rows of `train` are split into training, validation and test. None: `8:1:1` below 1,000 rows, else
    `18:1:1`."""
    encoding: str | None = None
    """Encoding of text files, such as `cp932`. None: found for each file, and reported."""
    sheet: str | None = None
    """Sheet of Excel workbooks. None: the only one with rows."""
    held_out_fraction: float | None = Field(None, gt=0.0, lt=1.0)
    """Former way to say `split`: this share of the rows is set aside, a half of it each for validation and test."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the file for each column of the task, where they differ, such as `{text: body, label: is_spam}`."""
    max_rows: int | None = Field(None, ge=1)
    """Use only this many rows, chosen by hash (the same each time). None: all."""
    max_tokens: int = Field(1024, ge=8, le=2**20)
    """Longest row in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a longer row: refuse the data, drop the row, or truncate it at the end."""

    personal_data: PersonalDataPolicy | None = None
    """What happens to rows with personal data or secrets: `report`, `redact`, `drop` or `refuse`, for all kinds or for
    each, such as `{email: redact, api_key: refuse}`. None: they are counted and reported."""
    clean: CleaningPolicy | None = None
    """Cleaning of the rows before they are split: `standard`, `report`, or each step on its own. None: what is quickly
    found is reported."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Files that are read: `train` and, where they are set, `held_out`, `test`, and that of `clean.drop_rows`."""
        drop = self.clean.drop_rows if self.clean is not None and isinstance(self.clean.drop_rows, str) else None
        return (*self.train_sources, *(each for each in (self.held_out, self.test, drop) if each is not None))

    @property
    def train_sources(self) -> tuple[str, ...]:
        """Addresses of `train`: none, one or several."""
        return tuple(each.source for each in self.mixture)

    @property
    def mixture(self) -> tuple[RowSource, ...]:
        """`train`, with the limits and weights of its sources."""
        given = () if self.train is None else (self.train,) if isinstance(self.train, str) else self.train
        return tuple(RowSource(source=each) if isinstance(each, str) else each for each in given)

    def split_of(self, rows: int) -> Shares:
        """Shares of the sides for this number of rows."""
        if self.held_out_fraction is not None and (self.split is None or self.split.ratio is None):
            half = self.held_out_fraction / 2
            return Shares(1 - self.held_out_fraction, half, half)
        return (self.split or SplitSection()).shares(rows)

    def problems(self) -> list[str]:
        """Fields that exclude each other."""
        problems = []
        if self.dataset is None and self.train is None:
            problems.append("data.train: name rows, or a dataset of the team in data.dataset")
        if self.dataset is not None:
            given = [name for name in _OF_ROWS if getattr(self, name) not in (None, {})]
            if given:
                problems.append(
                    f"data.dataset: {self.dataset} has its rows and sides; leave out {' and '.join(given)}, or name "
                    "the rows instead"
                )
        if self.held_out_fraction is not None and self.split is not None:
            problems.append("data.held_out_fraction: data.split says it too; leave the first out")
        return problems


_OF_ROWS = (
    "train", "name", "held_out", "test", "split", "encoding", "sheet", "held_out_fraction", "columns", "personal_data",
    "clean",
)  # fmt: skip
"""Fields that say how rows become a dataset."""


class LoraSection(SpecSection):
    rank: int = Field(16, ge=1, le=512)
    """Rank of the update matrices."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank (Hu et al. 2021, arXiv:2106.09685)."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` is every one but the head."""


class TrainingSection(SpecSection):
    method: Literal["full", "lora", "qlora", "frozen"] = "lora"
    """`full`: every weight. `lora`: low-rank adapters. `qlora`: the same over a 4-bit base. `frozen`: only the head,
    or for a causal model its last `trainable_blocks` blocks."""
    lora: LoraSection = LoraSection()
    """Used by `lora` and `qlora`."""
    trainable_blocks: int = Field(2, ge=1, le=1000)
    """Number of last transformer blocks that `frozen` trains in a causal model."""
    epochs: int = Field(3, ge=1, le=50)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps. None: after `epochs`."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Rows per optimizer step, over all workers."""
    micro_batch_tokens: int = Field(2048, ge=8, le=2**24)
    """Most tokens in one forward pass of a worker; a step accumulates gradients over as many passes as it needs."""
    packing: bool = True
    """Pack several rows into one sequence, without attention across them (causal models only; others are padded)."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. None: 2e-4 for lora and qlora, 2e-5 for full, 1e-3 for a frozen backbone's head and 5e-5
    for a frozen causal model's blocks."""
    warmup_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "cosine"
    """How the learning rate falls to 0 after the warm-up. `warmup_stable_decay`: only in the last fifth of the steps
    (Hägele et al. 2024, arXiv:2405.18392); every trial of a search uses this schedule."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the global gradient norm at this value. None: no clipping."""
    precision: Precision = "auto"
    """`auto`: bf16 where the hardware computes it natively, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Steps between evaluations of the held-out loss. None: at the end of each epoch."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better held-out loss. None: never."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, besides those after each evaluation. None: only after evaluations."""
    checkpoints_to_keep: int = Field(2, ge=1, le=1000)
    """Number of checkpoints kept in the store: the best by held-out loss, and always the last."""
    publish_checkpoints: bool = False
    """Register the other checkpoints kept as further versions of the model, each with the alias
    `ckpt-step-{step}` (chat models with adapters only)."""
    seed: int = Field(42, ge=0, le=2**31 - 1)
    """Seeds the order of the rows, new weights and dropout."""


class ComputeSection(SpecSection):
    workers: int = Field(1, ge=1, le=1024)
    """Training processes: one per GPU or, without GPUs, one per share of the cores."""
    cpus_per_worker: float = Field(1.0, gt=0, le=1024)
    """Ray CPUs reserved for each worker."""
    gpus_per_worker: int = Field(0, ge=0, le=1)
    """GPUs reserved for each worker: 0 or 1."""
    threads_per_worker: int | None = Field(None, ge=1, le=1024)
    """Compute threads of a CPU worker. None: the machine's cores divided by the workers on it."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is split over the workers. 1: optimizer state; 2: also gradients; 3: also weights.
    In bf16, 0 runs as 1."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """Keep optimizer state, or weights too, in CPU memory (needs zero_stage 2 or 3; weights need 3)."""
    max_failures: int = Field(3, ge=0, le=100)
    """How often lost workers are restarted from the last checkpoint before the job fails."""


class ParitySection(SpecSection):
    prompts: int = Field(8, ge=1, le=256)
    """Held-out prompts answered by both the serving engine and the trainer's model."""
    max_mean_logprob_gap: float | None = Field(None, gt=0, le=100)
    """Largest mean |difference| of the answer tokens' log-probabilities. None: 1e-3 in fp32, 0.1 in bf16."""


class EvaluationSection(SpecSection):
    must_beat_base: bool = True
    """Refuse to register a model that is not better than its base on the test rows by more than chance."""
    generate_rows: int = Field(16, ge=0, le=10_000)
    """Test rows that both models answer for the task metric (chat only)."""
    max_new_tokens: int = Field(64, ge=1, le=65_536)
    """Longest such answer, in tokens."""
    parity: ParitySection = ParitySection()
    """The check that the served model answers as the trained one did."""


class ServingSection(SpecSection):
    deploy: bool = True
    """Deploy the version once it is registered."""
    max_model_len: int = Field(2048, ge=64, le=2**20)
    """Longest prompt plus answer, in tokens."""
    max_loras: int = Field(4, ge=1, le=256)
    """Most adapters that a base's engine holds in memory at once."""
    max_ongoing_requests: int = Field(32, ge=1, le=1024)
    """Most requests that a replica processes at once."""
    max_queued_requests: int = Field(128, ge=1, le=10_000)
    """Most requests that wait beyond those; more are answered 429."""
    kv_cache_gib: float = Field(1.0, gt=0, le=1024)
    """Memory of a CPU engine's key/value cache, in GiB (a GPU engine takes what is free)."""
    tool_parser: ToolParser | None = None
    """vLLM's parser of tool calls. None: the one for the base's chat template; `none`: no parser."""
    reasoning_parser: ReasoningParser | None = None
    """vLLM's parser of reasoning. None: the one for the base's chat template; `none`: no parser."""


TRACKING_CREDENTIALS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "WANDB_API_KEY",
)
"""Environment variables with the trackers' credentials; a job file holds none."""
_SERVER = r"https?://[^\s/@?#\\]+(/[^\s@?#\\]*)?"
_DATABASE = r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://(?!.*:[^@]*@)[^?#\\\n]*"


def _address(form: str, kinds: str) -> AfterValidator:
    """Accept only a form that holds no credentials. The error does not repeat the text, which may hold some."""

    def check(uri: str) -> str:
        try:
            urlsplit(uri)
        except ValueError:
            valid = False
        else:
            valid = re.fullmatch(form, uri) is not None
        if not valid:
            raise ValueError(
                f"it must be {kinds}, without a password, `?` or `#`, because a job's record keeps its job file: set "
                "credentials in the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "MLFLOW_TRACKING_TOKEN, WANDB_API_KEY)"
            )
        return uri

    return AfterValidator(check)


_Text = Annotated[str, Field(min_length=1, max_length=1024)]
ServerUrl = Annotated[_Text, _address(_SERVER, "an http(s) address")]
"""A server's address, without credentials."""
TrackingUri = Annotated[
    _Text, _address(f"{_SERVER}|{_DATABASE}", "an http(s) address or a database (sqlite, postgresql, mysql, mssql)")
]
"""The address of a server or a database, without credentials."""


class MlflowSection(SpecSection):
    tracking_uri: TrackingUri
    """MLflow's tracking server, such as `https://mlflow.example`, or a database such as `sqlite:////data/mlflow.db`.
    Credentials come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from MLFLOW_TRACKING_TOKEN."""
    experiment: str | None = Field(None, min_length=1, max_length=250)
    """Experiment that gets the runs. None: the model's name."""


class WandbSection(SpecSection):
    project: str = Field(min_length=1, max_length=128)
    """Project that gets the runs."""
    entity: str | None = Field(None, min_length=1, max_length=128)
    """Team or user that owns the project. None: the default of the API key."""
    name: str | None = Field(None, min_length=1, max_length=128)
    """Display name of the job's run. None: the job's id. A search's runs have the names of its trials."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field((), max_length=64)
    """Tags of the runs."""
    mode: Literal["online", "offline"] = "online"
    """`online`: send to the server, with the key in WANDB_API_KEY. `offline`: write files into the store, for
    `wandb sync`."""
    base_url: ServerUrl | None = None
    """Address of a W&B server of one's own. None: WANDB_BASE_URL, or W&B's service."""


class TrackingSection(SpecSection):
    """Where a job's metrics are also written. It is no part of the job's id."""

    tensorboard: bool = True
    """Write TensorBoard event files into the store; `kitae tracking JOB` downloads them."""
    mlflow: MlflowSection | None = None
    """Write a run to MLflow (needs the extra `mlflow`). None: no."""
    wandb: WandbSection | None = None
    """Write a run to Weights & Biases (needs the extra `wandb`). None: no."""
