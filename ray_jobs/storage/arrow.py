"""The store as a pyarrow file system, for libraries that write their files through one, such as Ray Tune."""

from __future__ import annotations

from pyarrow.fs import S3FileSystem

from ray_jobs.storage.bucket import StoreSettings


class StoreFileSystem(S3FileSystem):  # type: ignore[misc]  # pyarrow is untyped
    """The S3 file system of a store's endpoint. A pickle carries no credentials: the unpickling process uses those of
    its own environment."""

    def __init__(self, settings: StoreSettings) -> None:
        scheme, _, address = settings.endpoint_url.partition("://")
        super().__init__(
            access_key=settings.access_key_id,
            secret_key=settings.secret_access_key,
            session_token=settings.session_token,
            region=settings.region,
            scheme=scheme,
            endpoint_override=address,
            request_timeout=settings.silence_s,
            check_directory_existence_before_creation=True,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, ()


def _reopen() -> StoreFileSystem:
    from ray_jobs.storage.store import Store

    return Store.from_env(check=False).filesystem("")[0]
