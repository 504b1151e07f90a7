"""Access: a bucket's policy, and what credentials may do with a key.

Does not know teams or which keys are theirs; `infra/object-store` composes policies and checks credentials.
"""

from __future__ import annotations

from ray_jobs.errors import CorruptObject, ObjectNotFound, StoreAccessDenied
from ray_jobs.storage.store import Store

_WRONG_SHA256 = bytes(32)


def set_policy(store: Store, document: str) -> None:
    """Replace the policy of the store's bucket. Raises StoreAccessDenied, or StoreError for a refused document."""
    store._bucket.set_policy(document)


def may_read(store: Store, key: str) -> bool:
    """Whether the store's credentials may read a key, which need not exist."""
    try:
        store.get(key)
    except StoreAccessDenied:
        return False
    except ObjectNotFound:
        pass
    return True


def may_write(store: Store, key: str) -> bool:
    """Whether the store's credentials may write a key. Writes nothing: the request has a wrong checksum."""
    try:
        store._bucket.put(store._full(key), b"kitae", sha256=_WRONG_SHA256)
    except StoreAccessDenied:
        return False
    except CorruptObject:
        pass
    return True
