"""Slides behind an address (https://, s3://, gs://, ...): a path whose file is read part by part, never downloaded.

fsspec does the transport; packages for a protocol are optional (extra ``remote``). An address is written into run
folders and logs, so one that holds a name, a password, a key or a signature is refused: credentials come from the
environment or the configuration of the store's own package. Nothing is ever written to an address.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tilers import stores
from tilers.stores import COPY, HTTP, changed_ns, file_system, missing_package, options
from wsi_chat.errors import SettingError, SlideError, SlideNotFound, SlideUnreadable, SlideUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    _LocalPath = Path
else:
    _LocalPath = type(Path())

T = TypeVar("T")

SCHEMES = (*HTTP, "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "ftp", "sftp", "ssh", "smb", "hdfs",
           "webhdfs", "memory")  # fmt: skip
BLOCK, BLOCKS = 2**20, 16  # bytes that are read at once for a header, and how many such blocks are kept per handle
STORE_MARKS = ("zarr.json", ".zgroup", ".zattrs")  # an http server has no folders: these files make one
CREDENTIALS = (
    "Leave it out: the address is written into reports and logs. Credentials come from the environment or the "
    "configuration of the store's package (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc, FSSPEC_*)."
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a store says of a path: file or folder, its bytes, and when it changed in ns (see `stores.changed_ns`)."""

    kind: Literal["file", "folder"]
    size: int = 0
    changed_ns: int = 0


class RemotePath(_LocalPath):
    """A path behind an address; ``str`` gives the address.

    Names, suffixes, parents and ``/`` are those of a path, and whatever looks at the file or reads it asks the store.
    Programs that know only files of this machine find nothing at it.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def scheme(self) -> str:
        """The protocol, such as ``https``."""
        return str(self).partition(":")[0]

    # -------------------------------------------------------------------------------------- what a path can

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def expanduser(self) -> RemotePath:
        return self

    def samefile(self, other_path: str | os.PathLike[str]) -> bool:
        return str(self) == str(other_path)

    def exists(self, **_: Any) -> bool:
        return self._is() is not None

    def is_file(self, **_: Any) -> bool:
        try:
            return self._seen_as(self._file_by_http if self.scheme in HTTP else self._look_store).kind == "file"
        except SlideError:
            return False

    def is_dir(self, **_: Any) -> bool:
        return self._is() == "folder"

    def _is(self) -> Literal["file", "folder"] | None:
        try:
            return self.look().kind
        except SlideError:
            return None

    def stat(self, **_: Any) -> os.stat_result:
        try:
            seen = self.look()
        except SlideError as error:
            raise FileNotFoundError(error.message) from error
        mode = stat.S_IFREG if seen.kind == "file" else stat.S_IFDIR
        seconds = seen.changed_ns // 10**9
        numbers = (mode, 0, 0, 1, 0, 0, seen.size, seconds, seconds, seconds)
        return os.stat_result(numbers, {"st_mtime_ns": seen.changed_ns})

    def open(self, mode: str = "r", *_: Any, **how: Any) -> IO[Any]:  # type: ignore[override]
        if set(mode) - set("rbt"):
            raise PermissionError(f"{self} is never written to")
        raw = io.BufferedReader(_RemoteFile(self), 8192)
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding=how.get("encoding"), errors=how.get("errors"))

    def iterdir(self) -> Generator[RemotePath, None, None]:
        names = self._ask(lambda: self.files.ls(self.key, detail=False))
        return (self / str(name).rstrip("/").rpartition("/")[2] for name in names)

    def rglob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """Every file below, whatever the pattern: only ``*`` is asked for."""
        key = self.key.rstrip("/")
        names = self._ask(lambda: self.files.find(key))
        return (self / str(name).removeprefix(key).lstrip("/") for name in sorted(names))

    # -------------------------------------------------------------------------------------- what a store can

    @property
    def files(self) -> Any:
        """The fsspec file system of the protocol.

        Raises:
            SlideUnsupported: its package is not installed.
        """
        return file_system(self.scheme)

    @property
    def key(self) -> str:
        """The path as the file system names it."""
        return str(self.files._strip_protocol(str(self)))

    def look(self) -> _Seen:
        """What is there. Asked once: a path object does not notice that its file changes.

        Raises:
            SlideNotFound: nothing. SlideUnsupported: a server that sends whole files only. SlideUnreadable: no answer.
        """
        return self._seen_as(self._look_http if self.scheme in HTTP else self._look_store)

    def _seen_as(self, look: Callable[[], _Seen]) -> _Seen:
        seen: _Seen | None = self.__dict__.get("_seen")
        if seen is None:
            seen = self.__dict__["_seen"] = self._ask(look)
        return seen

    def _look_store(self) -> _Seen:
        info = self.files.info(self.key)
        kind: Literal["file", "folder"] = "folder" if info["type"] == "directory" else "file"
        return _Seen(kind, int(info.get("size") or 0), changed_ns(info))

    def _look_http(self) -> _Seen:
        """A file, or a folder that is one by the files in it, as far as http has folders."""
        try:
            return self._file_by_http()
        except (OSError, SlideUnsupported):
            may_be_store = self.suffix.lower() in ("", ".zarr")
            if may_be_store and any((self / mark).is_file() for mark in STORE_MARKS):
                return _Seen("folder")
            raise

    def _file_by_http(self) -> _Seen:
        """One byte is asked for, which shows the size, and whether parts can be had, before anything large is sent."""
        from fsspec.asyn import sync

        files, key = self.files, self.key

        async def first_byte() -> tuple[int, dict[str, str]]:
            session = await files.set_session()
            wanted = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
            async with session.get(files.encode_url(key), headers=wanted) as answer:
                if answer.status == 206:
                    await answer.read()  # so that the connection serves again
                return answer.status, dict(answer.headers)

        status, headers = sync(files.loop, first_byte)
        headers = {name.lower(): value for name, value in headers.items()}
        total = headers.get("content-range", "").rpartition("/")[2]
        if status == 206 and total.isdecimal():
            return _Seen("file", int(total), changed_ns(headers))
        if status in (404, 410):
            raise FileNotFoundError(key)
        if status in (401, 403):
            raise PermissionError(f"it refuses access ({status})")
        if status == 416:  # of an empty file there is no first byte
            return _Seen("file", 0, changed_ns(headers))
        if status == 200:
            raise SlideUnsupported(
                f"{self} cannot be read in parts: its server ignores Range and sends whole files only.", hint=COPY
            )
        raise OSError(f"it answers with status {status}")

    def read_range(self, start: int, length: int) -> bytes:
        """So many bytes from ``start``; safe to call from several threads.

        Raises:
            SlideError: see `look`; or the file is another one than before.
        """
        if length <= 0:
            return b""
        data: bytes = self._ask(lambda: self.files.cat_file(self.key, start=start, end=start + length))
        return self._whole(data, length)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several (start, length), fetched at the same time where the store can. Raises as `read_range`."""
        starts, ends = [start for start, _ in ranges], [start + length for start, length in ranges]
        parts = self._ask(lambda: self.files.cat_ranges([self.key] * len(ranges), starts, ends))
        return [self._whole(part, length) for part, (_, length) in zip(parts, ranges, strict=True)]

    def _whole(self, data: bytes, length: int) -> bytes:
        if len(data) != length:
            raise SlideUnreadable(
                f"{self}: {len(data)} bytes came where {length} were asked for; it changed, or its server is faulty.",
                hint=COPY,
            )
        return data

    def _ask(self, question: Callable[[], T]) -> T:
        """The store's answer; what goes wrong there as an error of ours."""
        try:
            return question()
        except SlideError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise SlideNotFound(f"There is nothing at {self}.", hint="Check the address.") from error
        except ImportError as error:
            raise missing_package(self.scheme, error) from error
        except PermissionError as error:
            reason = str(error) if str(error).startswith("it refuses") else "it refuses access"
            raise SlideUnreadable(f"{self}: {reason}.", hint=CREDENTIALS.partition(": ")[2]) from error
        except TimeoutError as error:
            raise SlideUnreadable(
                f"{self}: no answer within {stores.READ_S:g} s.",
                hint="Check the network, or copy the slide to this machine.",
            ) from error
        except Exception as error:  # every store raises its own kinds
            if trouble := stores.network_trouble(error):
                raise SlideUnreadable(f"{self}: {trouble}.", hint="Check the address and the network.") from error
            name = type(error).__name__
            if name == "NoCredentialsError":
                raise SlideUnreadable(
                    f"{self}: no credentials were found.", hint=CREDENTIALS.partition(": ")[2]
                ) from error
            raise SlideUnreadable(
                f"{self}: {name}: {_without_secrets(str(error))}.", hint="Check the address and the network."
            ) from error


class _RemoteFile(io.RawIOBase):
    """A file that is open for reading, in blocks that are kept for a while. For headers; tiles are read by range."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._size = path.look().size
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.name = path.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a place before the beginning of the file")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size:
            return 0
        number, offset = divmod(self._at, BLOCK)
        part = self._block(number)[offset : offset + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        start = number * BLOCK
        data = self._path.read_range(start, min(BLOCK, self._size - start))
        with self._lock:
            self._blocks[number] = data
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        return data


# ------------------------------------------------------------------------------------------------ addresses


def slide_path(given: str | os.PathLike[str]) -> Path:
    """Where a slide is: a path of this machine, or an address of one of `SCHEMES` as a `RemotePath`.

    An address that went through ``Path``, which leaves one slash of two, is known too; ``file://`` is this machine.

    Raises:
        SettingError: an address that holds credentials, a query or a fragment, or that nothing here can read.
    """
    if isinstance(given, RemotePath):
        return given
    text = os.fspath(given)
    found = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]+):(/+)", text)
    if found is None:
        return Path(given)
    scheme, rest = found[1].lower(), text[found.end() :].strip()
    if scheme == "file":
        return Path(url2pathname(urlsplit(f"file:///{rest.lstrip('/')}").path))
    if scheme not in SCHEMES:
        if found[2] == "/" or Path(given).exists():
            return Path(given)
        raise SettingError(
            f"Addresses that begin with {found[1]}:// are not read.", hint=f"Known are: {', '.join(SCHEMES)}."
        )
    return RemotePath(_checked(scheme, rest))


def _checked(scheme: str, rest: str) -> str:
    url = f"{scheme}://{rest}"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise SettingError(f"An address of {scheme}:// cannot be used: {error}.", hint="Check its spelling.") from error
    shown = f"{scheme}://{host}/..."
    if parts.username or parts.password or "@" in parts.netloc:
        raise SettingError(f"The address {shown} comes with a name, a password or a key in it.", hint=CREDENTIALS)
    if parts.query or parts.fragment or "?" in rest:
        raise SettingError(
            f"The address {shown} goes on after its path with ? or #, where keys and signatures are put.",
            hint=CREDENTIALS,
        )
    path = rest.rstrip("/")
    if not path or (scheme != "memory" and ("/" not in path or not parts.netloc)):
        raise SettingError(
            f"{url} names no file.", hint="Give it as in https://host/slide.svs or s3://bucket/slide.svs."
        )
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise SettingError(f"{url} has an empty, '.' or '..' part in its path.", hint="Give the address without it.")
    return f"{scheme}://{path}"


def _without_secrets(text: str) -> str:
    """A message of a library, without what follows ``?`` in an address (after a redirect it may hold a signature)."""
    return re.sub(r"(\w+://)(?:[^\s/@'\"]*@)?([^\s?'\"]*)\?[^\s'\")]*", r"\1\2", text)


def zarr_store(path: Path) -> Any:
    """A folder as zarr opens it: its path, or a store that reads an address."""
    if not isinstance(path, RemotePath):
        return str(path)
    from zarr.storage import FsspecStore

    path.look()
    return FsspecStore.from_url(str(path), storage_options=options(path.scheme), read_only=True)


def digest_of(path: RemotePath, keys: Iterable[str], *, most: int) -> bytes:
    """SHA-256 over the names and first ``most`` bytes of some files below an address; missing ones count as such."""
    digest = hashlib.sha256()
    for key in keys:
        file = path / key
        digest.update(f"|{key}|".encode())
        if file.is_file():
            digest.update(file.read_range(0, min(most, file.look().size)))
    return digest.digest()
