"""Entries of zip files. A small file may hold any number of bytes, and say of itself that it holds few."""

from __future__ import annotations

import zipfile

#: How entries may be packed: unpacking these stops where it is told to. That of bzip2 and LZMA goes on to the end of
#: what was read of the file, and only then zipfile cuts it to the size that the entry says it has.
STOPPABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of an entry, its checksum checked: never more than the `file_size` that it says it has.

    Raises:
        zipfile.BadZipFile: it is damaged, or packed by another method than deflate.
        KeyError, OSError, RuntimeError, EOFError, OverflowError, zlib.error: as zipfile.
    """
    entry = archive.getinfo(name)
    if entry.compress_type not in STOPPABLE:
        raise zipfile.BadZipFile(f"{name[:60]!r} is packed by another method than deflate")
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)  # without a size it unpacks 2 GB before it cuts
