"""The endpoint: OpenAI's routes and health. Wiring only.

Each group of routes is in a module of its own (`*_api`); around them are the layers that admit a request (`auth`) and
measure it (`metrics`), beside them what is done in the background.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from ray_jobs import __version__, deploy
from ray_jobs.deploy.serve_api import INGRESS
from ray_jobs.errors import KitaeError
from ray_jobs.launch.launcher import Launcher
from ray_jobs.launch.ray_job import RayAddress, RayLauncher
from ray_jobs.storage import Store
from ray_jobs.tenancy.webhooks import Policy, Sender
from serving.access.auth import Gate
from serving.access.keys import KeySource, StoredKeys
from serving.access.limits import Limiter
from serving.files.stored_files import Files, RowCheck
from serving.files.uploads import Uploads
from serving.fine_tuning import endings
from serving.fine_tuning.service import FineTuning
from serving.http import errors
from serving.http.background import Background, Chore
from serving.http.openai_types import Health, Readiness
from serving.inference.backends import Backend, ServeBackend
from serving.inference.router import Router
from serving.inference.traffic import Traffic
from serving.observability.metrics import Finished, Metrics, Observed, log_requests
from serving.observability.usage import Ledger
from serving.routes import files as files_api
from serving.routes import fine_tuning, inference, models, openapi_document
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

_TICK_S = 2.0
_SWEEP_S = 3600.0
_KEEP_S = 3.0


def build(args: dict[str, Any]) -> Application:
    """Serve's builder (`serving.app:build`): the application that takes the requests."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    ongoing = Settings.from_env(os.environ).max_ongoing_requests
    # Who refuses what is too much, from the inside out:
    # - Each engine has its own limits (the record's `serving`): so many are worked on, so many wait, the next is 429
    #   `queue_full`. One full model leaves the others alone.
    # - The Gate counts all requests of this replica, whatever they are for, and answers the next 429 `overloaded`.
    # - Serve lets in twice as many, so that there is room for those that are just being refused, and they do not wait
    #   where nobody counts them. What comes faster than even a refusal is said waits in the proxy, and as many as that
    #   may; the next is refused there, without the body that ours have.
    # So what all of them hold is bounded, however much is sent.
    deployment = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=2 * ongoing,
        max_queued_requests=ongoing,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        logging_config={"enable_access_log": False},  # each request has its line from `metrics`
        ray_actor_options={"num_cpus": 0.01},
        max_constructor_retry_count=1,
    )(serve.ingress(app_from_environment)())
    application: Application = deployment.bind()
    return application


def app_from_environment() -> ASGIApp:
    """The app of a Serve replica, from that process's environment."""
    from serving.files.row_checks import on_ray

    settings = Settings.from_env(os.environ)
    store = Store.from_env(check=False)
    log_requests()
    return create_app(
        settings,
        store,
        ServeBackend(),
        check_rows=on_ray(store),
        launcher=launcher_from_environment(os.environ),
        keys=StoredKeys(store, ttl_s=settings.key_ttl_s),
        keep=partial(deploy.keep, store, deploy.ServeSettings.from_env()) if settings.keep_deployments else None,
        behind_proxy=True,
    )


def launcher_from_environment(environment: Mapping[str, str]) -> Launcher:
    """Where jobs run: the Kubernetes cluster that KITAE_CLUSTER describes, else the Ray cluster of this process.

    SpecError where the description is wrong, ClusterUnreachable where there are no credentials.
    """
    from ray_jobs.cluster import settings

    found = settings.from_environment(environment)
    if found is None:
        ray = RayAddress.from_env()
        return RayLauncher(ray.dashboard_url, ray.token)
    from ray_jobs.cluster.client import Cluster
    from ray_jobs.launch.kubernetes import KubernetesLauncher

    return KubernetesLauncher(Cluster.connect(), found)


def create_app(
    settings: Settings,
    store: Store,
    backend: Backend,
    *,
    check_rows: RowCheck,
    launcher: Launcher,
    keys: KeySource | None = None,
    router: Router | None = None,
    traffic: Traffic | None = None,
    limiter: Limiter | None = None,
    keep: Callable[[], object] | None = None,
    behind_proxy: bool = False,
) -> Observed:
    """The endpoint as an ASGI app. `keys`: where teams' keys are looked up; None: only the operator's opens it.
    `router`, `traffic`, `limiter` None: new ones. `keep`: makes Serve run what is recorded; None: others see to that.
    `behind_proxy`: Serve's proxy gives requests their ids."""
    traffic = traffic or Traffic(store)
    router = router or Router(store, ttl_s=settings.route_ttl_s, stopped=traffic.stopped)
    limiter = limiter or Limiter(max_ongoing_requests=settings.max_ongoing_requests)
    metrics, ledger = Metrics(), Ledger(store)
    files = Files(store, check_rows)
    uploads = Uploads(store, files)
    tuning = FineTuning(store, files, launcher, defaults=settings.job_defaults, when_over=partial(endings.tell, store))
    sender = Sender(store, Policy.from_env(os.environ), told=metrics.webhook_delivery)
    background = Background(
        [
            Chore("jobs", _TICK_S, lambda: metrics.set_jobs(tuning.tick())),
            *([Chore("deployments", _KEEP_S, keep)] if keep is not None else []),
            Chore("usage", settings.usage_every_s, ledger.flush, at_end=True),
            Chore("expired files", _SWEEP_S, partial(_sweep, files, uploads)),
        ],
        wake=tuning.wake,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if keep is not None:
            # Before this process counts as running: nobody may take a new cluster for ready while it lacks the models.
            await asyncio.to_thread(_keep_first, keep)
        stop = asyncio.Event()
        sending = asyncio.create_task(sender.run(stop))
        background.start()
        yield
        stop.set()
        await asyncio.to_thread(background.stop)
        await sending

    app = FastAPI(
        title="Kitae",
        version=__version__,
        summary="Fine-tuning and inference, as the OpenAI API has them.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the request names
        lifespan=lifespan,
    )
    errors.install(app)
    openapi_document.install(app)
    app.include_router(inference.routes(router, backend, traffic))
    app.include_router(models.routes(store, router))
    app.include_router(files_api.routes(files, uploads, tuning))
    app.include_router(fine_tuning.routes(tuning))

    @app.get("/healthz", tags=["health"], response_model=Health)
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["health"], response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        statuses = await backend.statuses()
        wanted = [INGRESS, *(record.application for record in (await router.snapshot()).records.values())]
        waits = {name: statuses.get(name, "NOT_STARTED") for name in dict.fromkeys(wanted)}
        waits = {name: status for name, status in waits.items() if status != "RUNNING"}
        return JSONResponse({"status": "waits" if waits else "ok", "waits_for": waits}, 503 if waits else 200)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=errors.documented(403))
    async def show_metrics() -> Response:
        """Prometheus' text format."""
        body, content_type = metrics.render()
        return Response(body, media_type=content_type)

    # Around the app, not among its middleware: what those let through must carry a request id too.
    gate = Gate(app, settings, limiter=limiter, keys=keys, behind_proxy=behind_proxy)
    return Observed(gate, metrics, routes=lambda: app.routes, on_end=[ledger.count, partial(_charge, limiter)])


def _sweep(files: Files, uploads: Uploads) -> None:
    files.sweep(time.time())
    uploads.sweep(time.time())


def _keep_first(keep: Callable[[], object]) -> None:
    try:
        keep()
    except KitaeError as error:  # the background tries again, and what needs no model is answered meanwhile
        logger.warning("deployments wait: %s", error)


def _charge(limiter: Limiter, done: Finished) -> None:
    """Count an answer's tokens against its key's limit."""
    tokens = (done.prompt_tokens or 0) + (done.completion_tokens or 0)
    if done.key_id is not None and tokens:
        limiter.charge(done.key_id, tokens)
