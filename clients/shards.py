"""What an offline run works through: files here and in buckets, Parquet, WebDataset, cut into shards."""

from __future__ import annotations

import fnmatch
import hashlib
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeAlias

import pyarrow
from pyarrow import fs, parquet

from clients import sources
from clients.errors import SourceError

Load = Callable[[], bytes]
"""Reads an encoded picture; raises SourceError."""

SECRET = re.compile(r"//[^/@]*@|([?&](?:access_key|secret_key|session_token)=)[^&]*")


class InputError(SourceError):
    """An input that cannot be worked through at all: misuse."""

    exit_code = 2


@dataclass(frozen=True)
class Files:
    """Pictures, each a file of its own."""

    names: tuple[str, ...]

    def pictures(self) -> Iterator[tuple[str, Load]]:
        """Name and content of each."""
        for name in self.names:
            yield name, partial(_read, name)


@dataclass(frozen=True)
class ParquetRows:
    """Row groups of a Parquet file with a column of encoded pictures."""

    name: str
    groups: tuple[int, ...]
    first_row: int
    column: str

    def pictures(self) -> Iterator[tuple[str, Load]]:
        """Name (FILE#ROW) and content of each."""
        row = self.first_row
        with _open(self.name) as stream, parquet.ParquetFile(stream) as file:
            for batch in file.iter_batches(256, row_groups=list(self.groups), columns=[self.column]):
                for value in batch.column(0):
                    yield f"{self.name}#{row}", partial(_content, value.as_py())
                    row += 1


@dataclass(frozen=True)
class Tar:
    """A WebDataset shard: the pictures among its members, which may be those of several archives in a row."""

    name: str

    def pictures(self) -> Iterator[tuple[str, Load]]:
        """Name (FILE/MEMBER) and content of each.

        Raises:
            SourceError: After those that could be read: what follows is damaged.
        """
        try:
            with (
                _open(self.name) as stream,
                tarfile.open(fileobj=stream, tarinfo=_Member, ignore_zeros=True) as archive,
            ):
                for member in archive:
                    if not member.isfile() or not _is_picture(member.name):
                        continue
                    name = f"{self.name}/{member.name}"
                    if member.size > sources.MAX_BYTES:
                        yield name, partial(_content, None)
                        continue
                    file = archive.extractfile(member)
                    content = file.read() if file else None
                    yield name, partial(_content, content)
        except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            # What follows are all the formats that it is not.
            reason = _reason(error).partition(": - method")[0]
            raise SourceError(f"{printable_uri(self.name)}: no whole tar archive: {reason}") from error


class _Member(tarfile.TarInfo):
    """For `ignore_zeros`, which would pass over damaged headers like the zeros between two archives."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


Shard: TypeAlias = "Files | ParquetRows | Tar"


@dataclass(frozen=True)
class Listing:
    """The shards in order, and a digest of all that they read."""

    shards: list[Shard]
    digest: str


def find(inputs: Iterable[str], *, column: str, size: int, note: Callable[[str], None]) -> Listing:
    """Cuts the inputs into shards of about `size` pictures; row groups and tar archives stay whole.

    Args:
        inputs: Files, folders, patterns; paths, or URIs like s3://BUCKET/FOLDER, gs:// and file://.
        column: Of Parquet files: binary, or a struct with a binary field `bytes`.
        size: Pictures in a shard.
        note: Told in one line what is left out.

    Raises:
        InputError: An input stands for nothing, or cannot be read; a Parquet file has no such column.
    """
    found = [entry for word in inputs for entry in (_uri if "://" in word else _local)(word, note)]
    state = hashlib.sha256(f"{column}\0{size}".encode())
    for name, length in found:
        state.update(f"{name}\0{length}\0".encode("utf-8", "surrogateescape"))
    shards: list[Shard] = []
    for kind, group in groupby((name for name, _ in found), key=_kind):
        names = list(group)
        if kind == "tar":
            shards += map(Tar, names)
        elif kind == "parquet":
            shards += [shard for name in names for shard in _row_groups(name, column, size)]
        else:
            shards += [Files(tuple(names[i : i + size])) for i in range(0, len(names), size)]
    return Listing(shards, state.hexdigest())


def _local(word: str, note: Callable[[str], None]) -> Iterator[tuple[str, int]]:
    path = Path(word)
    if path.is_dir():
        files = [each for each in sorted(path.iterdir()) if sources.is_file(each)]
        containers = [each for each in files if _kind(each.name) != "file"]
        yield from ((str(each), _size(each)) for each in containers)
        if containers and not any(_is_picture(each.name) for each in files):
            return
    found = list(sources.find([word], note))
    pictures = [source for source in found if isinstance(source, sources.Picture)]
    if pictures and len(pictures) < len(found):
        note(f"{word}: not taken: {len(found) - len(pictures)} video(s)")
    for source in pictures or found:
        if not isinstance(source, sources.Picture) or source.url or word == "-":
            raise InputError(f"{source.name}: found no file of pictures, expected files, folders or patterns")
        if source.problem or source.path is None:
            raise InputError(f"{source.name}: {source.problem}")
        yield str(source.path), _size(source.path)


def _size(path: Path) -> int:
    """Bytes; 0 of a link that leads nowhere, which is an error when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _uri(word: str, note: Callable[[str], None]) -> Iterator[tuple[str, int]]:
    """A file, a folder or a pattern of any file system that pyarrow knows."""
    fixed = re.split(r"[*?\[]", word, maxsplit=1)[0]
    pattern = fixed != word
    base = fixed.rpartition("/")[0] if pattern else word
    system, path = _system(base, word)
    scheme = word.partition("://")[0]
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.File and not pattern:
            yield word, info.size
            return
        infos = []
        if info.type == fs.FileType.Directory:
            infos = system.get_file_info(fs.FileSelector(path, recursive="**" in word))
    except OSError as error:
        raise InputError(f"{printable_uri(word)}: {_reason(error)}") from error
    wanted = path + word[len(base) :] if pattern else ""
    taken = [
        info
        for info in sorted(infos, key=lambda info: info.path)
        if info.type == fs.FileType.File
        and (
            fnmatch.fnmatchcase(info.path, wanted.replace("**/", "*"))
            if pattern
            else _is_picture(info.path) or _kind(info.path) != "file"
        )
    ]
    if not taken:
        raise InputError(f"{printable_uri(word)}: no pictures, Parquet files or tar archives there")
    if len(taken) < len(infos) and not pattern:
        note(f"{printable_uri(word)}: not taken: {len(infos) - len(taken)}")
    _, mark, query = word.partition("?") if not pattern else ("", "", "")
    prefix = "file://" if scheme == "file" else f"{scheme}://"
    for info in taken:
        yield f"{prefix}{info.path}{mark}{query}", info.size


def _row_groups(name: str, column: str, size: int) -> Iterator[ParquetRows]:
    try:
        with _open(name) as stream, parquet.ParquetFile(stream) as file:
            schema, metadata = file.schema_arrow, file.metadata
            rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except (pyarrow.ArrowException, SourceError, OSError) as error:
        raise InputError(f"{printable_uri(name)}: no readable Parquet file: {_reason(error)}") from error
    if (count := schema.names.count(column)) != 1:
        has = f"has {count} columns" if count else "has no column"
        raise InputError(
            f"{printable_uri(name)}: {has} '{column}', found {', '.join(schema.names)}: "
            "name that of the encoded pictures with --column"
        )
    kind = schema.field(column).type
    has_bytes = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    inner = kind.field("bytes").type if has_bytes else kind
    if not (pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner)):
        raise InputError(
            f"{printable_uri(name)}: column '{column}' is {kind}, expected binary: encoded pictures"
        )
    groups: list[int] = []
    first, count = 0, 0
    for number, length in enumerate(rows):
        groups.append(number)
        count += length
        if count >= size or number == len(rows) - 1:
            yield ParquetRows(name, tuple(groups), first, column)
            groups, first, count = [], first + count, 0


def _system(uri: str, word: str) -> tuple[Any, str]:
    try:
        return fs.FileSystem.from_uri(uri)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{printable_uri(word)}: {_reason(error)}") from error


def _open(name: str) -> Any:
    """A file here or elsewhere as a stream.

    Raises:
        SourceError: It cannot be opened.
    """
    try:
        if "://" not in name:
            return Path(name).open("rb")
        system, path = fs.FileSystem.from_uri(name)
        return system.open_input_file(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SourceError(_reason(error)) from error


def _read(name: str) -> bytes:
    if "://" not in name:
        return sources.Picture(name, Path(name), Path()).read()
    with _open(name) as stream:
        try:
            return _content(stream.read(sources.MAX_BYTES + 1))
        except OSError as error:
            raise SourceError(_reason(error)) from error


def _content(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        raise SourceError("found no picture: the field is empty, or too large")
    if len(content) > sources.MAX_BYTES:
        raise SourceError(f"found more than {sources.MAX_BYTES} bytes, no picture is so large")
    return content


def _is_picture(name: str) -> bool:
    return _suffix(name) in sources.PICTURE_SUFFIXES and not sources.is_apple_double(name)


def _kind(name: str) -> str:
    suffix = _suffix(name)
    if sources.is_apple_double(name):
        return "file"
    if suffix in (".parquet", ".pq"):
        return "parquet"
    return "tar" if name.lower().endswith((".tar", ".tar.gz", ".tgz")) else "file"


def _suffix(name: str) -> str:
    return PurePosixPath(name.partition("?")[0] if "://" in name else name).suffix.lower()


def printable_uri(uri: str) -> str:
    """Without passwords and keys."""
    return SECRET.sub(lambda found: f"{found[1]}…" if found[1] else "//", uri)


def _reason(error: Exception) -> str:
    """The first sentence of what a file system says; credentials that are missing are what is most usual."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if re.search(
        r"credential|ACCESS_DENIED|Access ?Denied|Unauthorized|Forbidden|anonymous", text, re.IGNORECASE
    ):
        return f"no access: set the credentials of that store in the environment ({text[:160]})"
    return text[:300]
