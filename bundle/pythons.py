"""What every supported Python has, so that a build comes out the same under any of them."""

from __future__ import annotations

import ast
import io
import re
import token
import tokenize

#: As people write it, and as the parser takes it.
OLDEST_PYTHON = "3.11"
OLDEST_GRAMMAR = (3, 11)

#: The builtins of Python 3.11, which all later ones have.
BUILTIN_NAMES = frozenset(
    """
    ArithmeticError AssertionError AttributeError BaseException BaseExceptionGroup BlockingIOError
    BrokenPipeError BufferError BytesWarning ChildProcessError ConnectionAbortedError ConnectionError
    ConnectionRefusedError ConnectionResetError DeprecationWarning EOFError Ellipsis EncodingWarning
    EnvironmentError Exception ExceptionGroup False FileExistsError FileNotFoundError FloatingPointError
    FutureWarning GeneratorExit IOError ImportError ImportWarning IndentationError IndexError InterruptedError
    IsADirectoryError KeyError KeyboardInterrupt LookupError MemoryError ModuleNotFoundError NameError None
    NotADirectoryError NotImplemented NotImplementedError OSError OverflowError PendingDeprecationWarning
    PermissionError ProcessLookupError RecursionError ReferenceError ResourceWarning RuntimeError RuntimeWarning
    StopAsyncIteration StopIteration SyntaxError SyntaxWarning SystemError SystemExit TabError TimeoutError True
    TypeError UnboundLocalError UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError
    UnicodeWarning UserWarning ValueError Warning ZeroDivisionError __build_class__ __debug__ __import__ abs
    aiter all anext any ascii bin bool breakpoint bytearray bytes callable chr classmethod compile complex
    copyright credits delattr dict dir divmod enumerate eval exec exit filter float format frozenset getattr
    globals hasattr hash help hex id input int isinstance issubclass iter len license list locals map max
    memoryview min next object oct open ord pow print property quit range repr reversed round set setattr slice
    sorted staticmethod str sum super tuple type vars zip
    """.split()  # noqa: SIM905
)
#: The standard library's modules that Python 3.11 to 3.14 all have.
STANDARD_MODULES = frozenset(
    """
    __future__ _thread abc antigravity argparse array ast asyncio atexit base64 bdb binascii bisect builtins bz2
    cProfile calendar cmath cmd code codecs codeop collections colorsys compileall concurrent configparser
    contextlib contextvars copy copyreg csv ctypes curses dataclasses datetime dbm decimal difflib dis doctest
    email encodings ensurepip enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools
    gc genericpath getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http idlelib imaplib
    importlib inspect io ipaddress itertools json keyword linecache locale logging lzma mailbox marshal math
    mimetypes mmap modulefinder msvcrt multiprocessing netrc nt ntpath nturl2path numbers opcode operator
    optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posix posixpath pprint profile
    pstats pty pwd py_compile pyclbr pydoc pydoc_data pyexpat queue quopri random re readline reprlib resource
    rlcompleter runpy sched secrets select selectors shelve shlex shutil signal site smtplib socket socketserver
    sqlite3 sre_compile sre_constants sre_parse ssl stat statistics string stringprep struct subprocess symtable
    sys sysconfig syslog tabnanny tarfile tempfile termios textwrap this threading time timeit tkinter token
    tokenize tomllib trace traceback tracemalloc tty turtle turtledemo types typing unicodedata unittest urllib
    uuid venv warnings wave weakref webbrowser winreg winsound wsgiref xml xmlrpc zipapp zipfile zipimport zlib
    zoneinfo
    """.split()  # noqa: SIM905
)


def newer_syntax(text: str) -> tuple[int, str] | None:
    """The first line of a module, and what is wrong there, that the oldest supported Python does not parse.

    `text` is what the running one parses.
    """
    try:
        ast.parse(text, feature_version=OLDEST_GRAMMAR)
    except SyntaxError as error:
        return error.lineno or 1, error.msg
    line = newer_f_string(text)
    return None if line is None else (line, "this f-string is only supported in Python 3.12 and greater")


def newer_f_string(text: str) -> int | None:
    """The line of the first f-string that Python 3.11 does not parse, which `ast.parse` lets pass.

    There an f-string was a string first: it ended at the next quote like its own, and what stood in braces could have
    neither backslashes nor comments.
    """
    started, middle, ended = (getattr(token, f"FSTRING_{part}", None) for part in ("START", "MIDDLE", "END"))
    if started is None:  # Python 3.11 itself
        return None
    lines = text.split("\n")
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line) + 1)

    def place(position: tuple[int, int]) -> int:
        return offsets[position[0] - 1] + position[1]

    open_strings: list[tokenize.TokenInfo] = []
    last_end = 0
    for each in tokenize.generate_tokens(io.StringIO(text).readline):
        if open_strings:
            nested = len(open_strings) > 1 or each.type not in (middle, ended)
            continued = "\\" in text[last_end : place(each.start)]
            if each.type == token.COMMENT or (nested and "\\" in each.string) or continued:
                return open_strings[0].start[0]
        last_end = place(each.end)
        if each.type == started:
            open_strings.append(each)
        elif each.type == ended:
            opening = open_strings.pop()
            quotes = opening.string.lstrip("rRfFbBuU")
            inside = r"(?:\\.|[^\\])*?" if len(quotes) == 3 else r"(?:\\.|[^\\\n])*?"
            found = re.compile(inside + quotes, re.DOTALL).match(text, place(opening.end))
            if found is None or found.end() != place(each.end):
                return (open_strings or [opening])[0].start[0]
    return None
