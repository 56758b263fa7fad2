"""Where data sets and artifact stores lie: a folder on this machine or a prefix in an S3 bucket, named by one string.

`locate("data/patches.zarr")`, `locate("file:///data/patches.zarr")` and `locate("s3://bucket/patches.zarr")` give a
`Location`. How S3 is reached comes from the environment alone, so that addresses can be shown, stored and shared:
`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` (or a role, as cloud services hand it to their machines).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .errors import NotFound, StorageError, Unreachable

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Config
    from zarr.abc.store import Store

REFUSED = re.compile(
    r"AccessDenied|AccountProblem|AllAccessDisabled|AuthFailure|ExpiredToken|InvalidAccessKeyId|InvalidSecurity"
    r"|InvalidToken|SignatureDoesNotMatch|TokenRefreshRequired|UnauthorizedAccess"
)
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# One of these says where credentials come from; without any, clients would ask the network for a minute or more.
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place that holds one data set or one store. Make it with `locate`; equal addresses are equal values."""

    uri: str
    """Canonical address: an absolute path, or `s3://bucket/prefix` without a slash at the end."""

    @property
    def is_local(self) -> bool:
        """Whether this is a folder on this machine (or on a file system that it mounts)."""
        return not self.uri.startswith("s3://")

    @property
    def path(self) -> Path:
        """The folder; StorageError when the location is not local."""
        if not self.is_local:
            raise StorageError(f"{self.uri} is not on this machine: give a path here")
        return Path(self.uri)

    @property
    def bucket(self) -> str:
        """The bucket's name; StorageError when the location is local."""
        return self._split()[0]

    @property
    def prefix(self) -> str:
        """What comes after the bucket, without slashes at the ends; may be empty. StorageError when local."""
        return self._split()[1]

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def _split(self) -> tuple[str, str]:
        if self.is_local:
            raise StorageError(f"{self.uri} is on this machine: give an s3:// address here")
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return bucket, prefix

    def child(self, name: str) -> Location:
        """The location `name` (it may contain '/') below this one; StorageError when it would lead outside."""
        _check_key(name, f"{name!r} below {self.uri}")
        return Location(f"{self.uri.rstrip('/')}/{name}")

    def zarr_store(self, *, read_only: bool) -> Store:
        """A zarr store rooted here; nothing is created or contacted yet."""
        from zarr.storage import LocalStore, ObjectStore

        if self.is_local:
            return LocalStore(self.path, read_only=read_only)
        return ObjectStore(self.object_store(), read_only=read_only)

    def object_store(self) -> ObjectStore:
        """The obstore client rooted here, bounded in time: an endpoint that does not answer fails within seconds.

        A local folder is created. StorageError when the environment's S3 settings cannot work.
        """
        from obstore.store import LocalStore, S3Store

        if self.is_local:
            return LocalStore(self.path, mkdir=True)
        s3 = s3_settings()
        config: S3Config = {"region": s3.region, "virtual_hosted_style_request": s3.endpoint is None}
        if s3.endpoint:
            config["endpoint"] = s3.endpoint
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            # read_timeout counts from the last byte, so that big objects on slow lines still arrive.
            client_options={
                "allow_http": s3.allow_http,
                "connect_timeout": "3s",
                "read_timeout": "10s",
                "timeout": "10min",
            },
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=8),
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1)},
            },
        )

    def exists(self, key: str) -> bool:
        """Whether a file or object lies at `key` below this location."""
        place = self.child(key)
        if place.is_local:
            return place.path.is_file()
        import obstore

        with reaching(self):
            try:
                obstore.head(self.object_store(), key)
            except FileNotFoundError:
                return False
        return True

    def is_empty(self) -> bool:
        """Whether nothing lies here: no such folder, an empty one, or no object under the prefix.

        StorageError when the place cannot be looked at, or is a file.
        """
        with reaching(self):
            if self.is_local:
                return not self.path.exists() or not any(self.path.iterdir())
            import obstore

            return not any(len(part) for part in obstore.list(self.object_store(), chunk_size=1))

    def folders(self) -> list[str]:
        """Names of what lies directly below this place and holds something of its own, sorted."""
        with reaching(self):
            if self.is_local:
                return sorted(item.name for item in self.path.iterdir() if item.is_dir()) if self.path.exists() else []
            import obstore

            found = obstore.list_with_delimiter(self.object_store())["common_prefixes"]
            return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found)

    def clear(self) -> None:
        """Removes everything here, and the folder itself."""
        with reaching(self):
            if self.is_local:
                if self.path.exists():
                    shutil.rmtree(self.path)
                return
            import obstore

            store = self.object_store()
            for part in obstore.list(store):
                obstore.delete(store, [found["path"] for found in part])


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How S3 is reached, read from the environment; credentials stay there."""

    endpoint: str | None
    """Address of an S3-compatible service; None is AWS itself."""
    region: str
    allow_http: bool
    """True when the endpoint's address itself says http://, never otherwise."""


def s3_settings() -> S3Settings:
    """The environment's S3 settings; StorageError when they cannot work."""
    env = os.environ
    if not any(env.get(name) for name in CREDENTIALS):
        raise StorageError("s3:// needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if env.get("AWS_ACCESS_KEY_ID") and not env.get("AWS_SECRET_ACCESS_KEY"):
        raise StorageError("AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not: set both")
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
    if endpoint is not None and not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", endpoint):
        raise StorageError("AWS_ENDPOINT_URL must start with https:// or http://, e.g. https://s3.example.org")
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
    return S3Settings(endpoint, region, allow_http=bool(endpoint) and endpoint.startswith("http://"))


def locate(uri: str | os.PathLike[str]) -> Location:
    """The location that a path, `file://…` or `s3://bucket/prefix` names; nothing needs to exist there.

    StorageError for other schemes, an impossible bucket, and keys that would lead outside of their prefix.
    """
    text = os.fspath(uri)
    if not text or "\0" in text:
        raise StorageError(f"{text!r} is not an address: give a path, file:///path or s3://bucket/prefix")
    match = SCHEME.match(text)
    if match is None:
        return Location(os.path.abspath(text))
    scheme, rest = match.group(1).lower(), match.group(2)
    if scheme == "file":
        if not rest.startswith("/"):
            raise StorageError(f"{text!r} names another machine: a file address is file:///absolute/path")
        return Location(os.path.abspath(unquote(rest)))
    if scheme != "s3":
        raise StorageError(f"{scheme}:// is not supported: give a path, file:///path or s3://bucket/prefix")
    bucket, _, prefix = rest.partition("/")
    if ":" in bucket or "@" in bucket:  # a password, perhaps, and one may hold a '/': none of it is repeated
        raise StorageError("an S3 address is s3://bucket/prefix, without user, password or port (credentials: AWS_…)")
    if not BUCKET.fullmatch(bucket) or ".." in bucket:
        raise StorageError(f"{bucket!r} cannot be a bucket: an S3 address is s3://bucket/prefix")
    prefix = prefix.rstrip("/")
    if prefix:
        _check_key(prefix, repr(text))
    return Location(f"s3://{bucket}/{prefix}".rstrip("/"))


def _check_key(key: str, shown: str) -> None:
    if any(part in ("", ".", "..") for part in key.split("/")) or any(ord(letter) < 32 for letter in key):
        raise StorageError(f"{shown} is not a plain key: parts must not be empty, '.' or '..'")


@contextmanager
def reaching(place: Location) -> Generator[None]:
    """Turns what the file system or the S3 client raises inside into one StorageError that names the place.

    NotFound for what is not there, Unreachable where the server may answer later; other exceptions pass unchanged.
    """
    from obstore import exceptions as s3

    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{place.uri}: nothing there") from error
    except (s3.PermissionDeniedError, s3.UnauthenticatedError) as error:
        raise StorageError(f"{place.uri}: {refused(str(error)) or 'access denied'}") from error
    except PermissionError as error:
        raise StorageError(f"{place.uri}: access denied") from error
    except OSError as error:
        raise StorageError(f"{place.uri}: {error.strerror or error}") from error
    except s3.BaseError as error:
        missing = "<Code>NoSuchBucket</Code>" in str(error)
        away = re.search(r"HTTP error|status code: 5\d\d", str(error))
        kind = NotFound if missing else Unreachable if away else StorageError
        raise kind(f"{place.uri}: {_reason(error)}") from error


def refused(text: str) -> str | None:
    """The words for a user where an S3 client's error `text` says that the server refused the credentials: waiting
    does not help then. None for other errors."""
    code = REFUSED.search(text)
    if code is None:
        return None
    return (
        f"the S3 server refuses the credentials ({code.group()}): AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say which"
    )


def _reason(error: Exception) -> str:
    """What went wrong, without the client's debug output and the server's XML: both repeat request details."""
    text = " ".join(str(error).split())
    if "HTTP error" in text:
        return f"{s3_settings().endpoint or 'AWS S3'} does not answer (AWS_ENDPOINT_URL says where S3 is)"
    if words := refused(text):
        return words
    if code := re.search(r"<Code>(\w+)</Code>", text):
        return f"the S3 server says {code.group(1)}"
    return re.split(r"Debug source|: <", text)[0][:300] or type(error).__name__
