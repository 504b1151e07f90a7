"""The endpoint: OpenAI's routes and health. Wires the rooms together and decides nothing.

Serve imports `serving.app:build`. Routes are in `routes/`; middleware admits (`access.auth`) and measures
(`observability.middleware`) each request; periodic tasks run on a `BackgroundLoop`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ray_jobs import __version__, deploy, migration
from ray_jobs.deploy.serve_api import INGRESS
from ray_jobs.errors import KitaeError, StoreUnreachable
from ray_jobs.launch.launcher import Launcher
from ray_jobs.launch.ray_job import RayAddress, RayLauncher
from ray_jobs.launch.remote import RemoteLauncher
from ray_jobs.quota import bookings
from ray_jobs.storage import Store
from ray_jobs.tenancy.webhooks import Policy, Sender
from ray_jobs.tracking.packages import is_installed
from serving.access.auth import AccessMiddleware, is_operator
from serving.access.in_process import InProcess
from serving.access.keys import StoredKeys
from serving.access.rate_limiter import RateLimiter
from serving.batches.ending import Ending
from serving.batches.runner import BatchRunner
from serving.batches.service import Batches
from serving.evals import records as eval_records
from serving.evals.runner import EvalRunner
from serving.evals.service import EvalService
from serving.evals.stored_rows import rows_from
from serving.files.stored_files import Files, RowValidator
from serving.files.uploads import Uploads
from serving.fine_tuning.cleanup import Chore, chores
from serving.fine_tuning.service import FineTuningService
from serving.http import errors
from serving.http.background import BackgroundLoop, PeriodicTask
from serving.http.openai_types import Health, Readiness
from serving.http.paths import CanonicalPaths
from serving.inference.backends import Backend
from serving.inference.generation import Generator
from serving.inference.grammars import Grammars
from serving.inference.router import Router
from serving.inference.traffic import Traffic
from serving.observability.metrics import FinishedRequest, Metrics
from serving.observability.middleware import ObservabilityMiddleware, log_requests
from serving.observability.usage_ledger import UsageLedger
from serving.routes import batches as batches_api
from serving.routes import (
    checkpoint_permissions,
    evals,
    fine_tuning,
    graders,
    inference,
    models,
    openapi_document,
    responses,
    stored_completions,
)
from serving.routes import files as files_api
from serving.settings import EndpointSettings
from serving.stored.answers import StoredAnswers

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

_RECONCILE_RETRY_S = 3.0
_UNREADABLE_SHOWN = 20
"""Unreadable records of a kind that readiness names."""


def build(args: dict[str, Any]) -> Application:
    """Build the ingress application for Serve (`serving.app:build`)."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    # In any process of the Ray cluster, most of which do not have the operator's key.
    ongoing = EndpointSettings.from_env({**os.environ, "KITAE_AUTH": "off"}).max_ongoing_requests
    # Load is shed at three levels, from the inside out, so that memory stays bounded under any load:
    # - Each engine has its own limits (the record's `serving`) for running and queued requests; the next is answered
    #   429 `queue_full`. One full model does not affect the others.
    # - AccessMiddleware counts all requests of this replica and answers further ones 429 `overloaded`.
    # - Serve admits twice as many to leave room for requests that are being refused, queues as many as `ongoing` in the
    #   proxy, and refuses further ones there, without OpenAI's error body.
    deployment = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=2 * ongoing,
        max_queued_requests=ongoing,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        logging_config={"enable_access_log": False},  # the middleware writes a line for each request
        ray_actor_options={"num_cpus": 0.01},
        max_constructor_retry_count=1,
    )(serve.ingress(app_from_environment)())
    application: Application = deployment.bind()
    return application


def app_from_environment() -> ASGIApp:
    """Create the app of a Serve replica from the process's environment."""
    from serving.files.ray_row_validator import check_rows_in_ray

    settings = EndpointSettings.from_env(os.environ)
    store = Store.from_env(check=False).failing_fast()
    with suppress(StoreUnreachable):  # what it answers without a store, it answers also when it starts without one
        migration.require_layout(store)
    log_requests()
    return create_app(
        settings,
        store,
        Backend(),
        check_rows=partial(check_rows_in_ray, store),
        launcher=launcher_from_environment(os.environ, store.now_s),
        keys=StoredKeys(store, ttl_s=settings.key_ttl_s),
        grammars=Grammars(),
        reconcile_deployments=(
            partial(deploy.reconcile, store, deploy.ServeSettings.from_env())
            if settings.reconcile_deployments
            else None
        ),
        behind_proxy=True,
    )


def launcher_from_environment(environment: Mapping[str, str], now_s: Callable[[], float]) -> Launcher:
    """Return the launcher behind the socket KITAE_LAUNCHER, else that of the Kubernetes cluster in KITAE_CLUSTER, else
    of this process's Ray cluster.

    `now_s`: Unix seconds, compared with the times of Kubernetes' objects.

    Raises SpecError if KITAE_CLUSTER is invalid, ClusterUnreachable if there are no credentials.
    """
    if socket := environment.get("KITAE_LAUNCHER"):
        return RemoteLauncher(Path(socket))
    from ray_jobs.cluster import settings

    found = settings.from_environment(environment)
    if found is None:
        ray = RayAddress.from_env()
        return RayLauncher(ray.dashboard_url, ray.token)
    from ray_jobs.cluster.client import Cluster
    from ray_jobs.launch.kubernetes import KubernetesLauncher

    return KubernetesLauncher(Cluster.connect(), found, now=now_s)


def create_app(
    settings: EndpointSettings,
    store: Store,
    backend: Backend,
    *,
    check_rows: RowValidator,
    launcher: Launcher,
    keys: StoredKeys | None = None,
    router: Router | None = None,
    traffic: Traffic | None = None,
    limiter: RateLimiter | None = None,
    grammars: Grammars | None = None,
    reconcile_deployments: Callable[[], object] | None = None,
    behind_proxy: bool = False,
) -> ObservabilityMiddleware:
    """Create the endpoint as an ASGI app.

    `grammars`: started with the app; None: one that starts with the first request that has a constraint.
    `keys`: source of the teams' keys; None: only the operator's key is accepted. `router`, `traffic`, `limiter`: None
    for new ones. `reconcile_deployments`: called periodically to apply the deployment records to Serve; None: another
    process does. `behind_proxy`: Serve's proxy sets request ids.
    """
    traffic = traffic or Traffic(store)
    router = router or Router(store, ttl_s=settings.route_ttl_s, stopped=traffic.stopped)
    compiler = grammars or Grammars()
    limiter = limiter or RateLimiter(max_ongoing_requests=settings.max_ongoing_requests)
    metrics, ledger = Metrics(), UsageLedger(store)
    files = Files(store, check_rows, settings.team_quotas)
    uploads = Uploads(store, files)
    stored = StoredAnswers(store, settings.team_quotas, settings.answers_kept_days, metrics.stored_answer)
    offers_wandb = settings.offers_wandb and is_installed("wandb")
    tuning = FineTuningService(
        store,
        files,
        launcher,
        defaults=settings.job_defaults,
        offers_wandb=offers_wandb,
        prices=settings.prices,
    )
    batches = Batches(store, files)

    def users(team: str, file_id: str) -> list[str]:
        return [*tuning.open_jobs_using(team, file_id), *batches.open_using(team, file_id)]

    def in_use(team: str, file_id: str) -> bool:
        return bool(users(team, file_id))

    sender = Sender(store, Policy.from_env(os.environ), on_outcome=metrics.webhook_delivery)
    reconcile = reconcile_deployments
    background = BackgroundLoop(
        [
            PeriodicTask("jobs", 2.0, lambda: metrics.set_jobs(tuning.reconcile()), wake=tuning.wake),
            *([PeriodicTask("deployments", 3.0, reconcile)] if reconcile is not None else []),
            PeriodicTask("usage", settings.usage_every_s, ledger.flush, at_shutdown=True),
            PeriodicTask("bookings", 60.0, lambda: bookings.book(store, store.now_s())),
            *(
                # A replica looks often whether it is its turn: another one may have ended.
                PeriodicTask(chore.name, chore.every_s / 4, partial(chore.in_turn, store))
                for chore in (
                    *chores(store, files, uploads, stored, in_use),
                    Chore("deleted-evals", 24 * 3600.0, partial(eval_records.sweep, store)),
                    Chore("batches", 24 * 3600.0, batches.sweep),
                )
            ),
        ]
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if reconcile is not None:
            # Before this process counts as running: until its deployments are read and applied once, it would answer
            # for deployed models that they do not exist, and a new cluster would receive traffic without them.
            await _until_done(reconcile)
        stop = asyncio.Event()
        sending = asyncio.create_task(sender.run(stop))
        answering = asyncio.create_task(batch_runner.run(stop))
        evaluating = asyncio.create_task(eval_runner.run(stop))
        background.start()
        starting = asyncio.create_task(grammars.start()) if grammars is not None else None
        yield
        stop.set()
        if starting is not None:
            starting.cancel()
        await compiler.close()
        await asyncio.gather(answering, evaluating)  # before the usage of their last requests is written
        await asyncio.gather(asyncio.to_thread(background.stop), asyncio.to_thread(stored.close))
        await sending

    app = FastAPI(
        title="Kitae",
        version=__version__,
        summary="Fine-tuning and inference with an OpenAI-compatible API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the untrusted Host header
        lifespan=lifespan,
    )

    def observed(inner: ASGIApp, on_end: list[Callable[[FinishedRequest], None]]) -> ObservabilityMiddleware:
        return ObservabilityMiddleware(inner, metrics, routes=lambda: app.routes, on_end=on_end)

    in_process = InProcess(observed(app, [ledger.count]))
    eval_runner = EvalRunner(store, in_process)
    batch_runner = BatchRunner(store, Ending(store, files, max_line_bytes=settings.max_body_bytes), in_process.post)
    batches.wake = batch_runner.wake
    errors.install(app)
    openapi_document.install(app)
    generator = Generator(router, backend, traffic, compiler)
    app.include_router(inference.routes(generator, stored))
    app.include_router(responses.routes(generator, stored))
    app.include_router(stored_completions.routes(stored))
    app.include_router(checkpoint_permissions.routes(store))
    app.include_router(models.routes(store, router, tuning))
    app.include_router(files_api.routes(files, uploads, store, users))
    app.include_router(fine_tuning.routes(tuning))
    app.include_router(graders.routes(store, in_process, router))
    eval_service = EvalService(store, files, rows_from(store), eval_runner.wake)
    app.include_router(evals.routes(eval_service, router))
    app.include_router(batches_api.routes(batches))

    @app.get("/health", include_in_schema=False)  # where load generators for vLLM ask
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz", tags=["health"], response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz(request: Request) -> Response:
        """Whether this process and its engines answer; for the operator's key also which do not, and the records that
        cannot be read."""
        statuses = await backend.statuses()
        wanted = [INGRESS, *(record.application for record in (await router.snapshot()).records.values())]
        waits = {name: statuses.get(name, "NOT_STARTED") for name in dict.fromkeys(wanted)}
        waits = {name: status for name, status in waits.items() if status != "RUNNING"}
        answer: dict[str, Any] = {"status": "waits" if waits else "ok"}
        if is_operator(request.headers, settings):
            answer["waits_for"] = waits
            answer["unreadable_records"] = {
                kind: store.unreadable.keys(kind)[:_UNREADABLE_SHOWN]
                for kind, count in sorted(store.unreadable.counts().items())
                if count
            }
        return JSONResponse(answer, 503 if waits else 200)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=errors.documented(403))
    async def show_metrics() -> Response:
        """Metrics in Prometheus' text format."""
        metrics.set_unreadable(store.unreadable.counts())
        body, content_type = metrics.render()
        return Response(body, media_type=content_type)

    # Wrapped around the app, not added to its middleware: FastAPI's own error responses need a request id too.
    gate: ASGIApp = AccessMiddleware(app, settings, limiter=limiter, keys=keys, behind_proxy=behind_proxy)
    if settings.cors_origins:  # outside: a browser asks for permission without a key
        gate = CORSMiddleware(
            gate,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-should-retry"],
        )
    return observed(CanonicalPaths(gate), [ledger.count, partial(_charge, limiter)])


async def _until_done(reconcile: Callable[[], object]) -> None:
    """Call it until it succeeds. The store or Ray may be away when this process starts."""
    while True:
        try:
            await asyncio.to_thread(reconcile)
            return
        except KitaeError as error:
            logger.warning("the endpoint does not answer yet, its deployments are not applied: %s", error)
            await asyncio.sleep(_RECONCILE_RETRY_S)


def _charge(limiter: RateLimiter, done: FinishedRequest) -> None:
    """Take a response's tokens from its key's rate limit."""
    tokens = (done.prompt_tokens or 0) + (done.completion_tokens or 0)
    if done.key_id is not None and tokens:
        limiter.charge(done.key_id, tokens)
