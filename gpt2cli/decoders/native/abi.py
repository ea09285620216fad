"""The C interface of the library, for ctypes.

Structs are those of `types.h` and `quantize.h`, field by field; the functions are at the end of
`engine.cpp`, which documents them.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p


class Config(ctypes.Structure):
    """The sizes of a model."""

    _fields_ = (
        ("V", c_int),
        ("context", c_int),
        ("C", c_int),
        ("H", c_int),
        ("L", c_int),
        ("eps", c_float),
    )


class KVCache(ctypes.Structure):
    """Addresses of the KV cache."""

    _fields_ = (
        ("pages", c_int),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    )


class Job(ctypes.Structure):
    """`count` chunks (start, number of ids, every, first entry in the tables), and where to write.

    All arrays but the logits are of 32-bit integers.
    """

    _fields_ = (
        ("chunks", c_void_p),
        ("ids", c_void_p),
        ("tables", c_void_p),
        ("count", c_int),
        ("logits", c_void_p),
    )


class DrawJob(ctypes.Structure):
    """Rows of logits to draw from, and where to write the tokens."""

    _fields_ = (
        ("logits", c_void_p),
        ("stride", c_int64),
        ("rows", c_void_p),
        ("temperatures", c_void_p),
        ("p", c_void_p),
        ("uniforms", c_void_p),
        ("chosen", c_void_p),
        ("count", c_int),
        ("V", c_int),
    )


class EncodeJob(ctypes.Structure):
    """A matrix to quantize."""

    _fields_ = (
        ("weights", c_void_p),
        ("input_stride", c_int64),
        ("output_stride", c_int64),
        ("inputs", c_int),
        ("outputs", c_int),
        ("bits", c_int),
        ("codes", c_void_p),
    )


def declare(library: ctypes.CDLL) -> None:
    """Set the types of all functions. Raises `AttributeError` if the library lacks one."""
    library.engine_best_level.restype = c_int
    library.engine_page_length.restype = c_int
    library.engine_code_bytes.restype = c_int64
    library.engine_code_bytes.argtypes = (c_int, c_int, c_int)
    library.engine_encode.restype = None
    library.engine_encode.argtypes = (POINTER(EncodeJob), c_int, c_int)
    library.engine_new.restype = c_void_p
    library.engine_new.argtypes = (
        POINTER(Config),
        POINTER(KVCache),
        c_void_p,
        c_int,
        c_int,
        c_int,
    )
    library.engine_free.restype = None
    library.engine_free.argtypes = (c_void_p,)
    library.engine_draw.restype = c_int
    library.engine_draw.argtypes = (c_void_p, POINTER(DrawJob))
    library.engine_read.restype = c_int
    library.engine_read.argtypes = (c_void_p, POINTER(Job))
