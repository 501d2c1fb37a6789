"""Write and read GGUF files: the only place that imports the package `gguf`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import BaseError
from shepherd.io.progress import stage
from shepherd.model import files
from shepherd.version import install

if TYPE_CHECKING:
    from gguf import GGUFWriter

Value = bool | int | float | str | Sequence[str] | Sequence[float] | Sequence[int]
"""A value of the metadata: an int is stored as uint32 and a float as float32."""
Number = Literal["float32", "bfloat16", "float16", "q8_0"]
"""How matrices are stored; q8_0 is 8 bits with a scale for each 32 numbers of a row."""
Tensor = tuple[str, NDArray[np.float32]]

KINDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
FILE_TYPES = {"float32": "ALL_F32", "bfloat16": "MOSTLY_BF16", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


def require_installed() -> None:
    """Raise BaseError if the package `gguf` is missing."""
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        raise BaseError(
            f"GGUF files need the package gguf, which is not installed; run {install('gguf')}"
        ) from error


def names(architecture: str, blocks: int, modules: Iterable[str]) -> dict[str, str]:
    """The name in GGUF of each tensor of transformers; a tensor that GGUF does not know is left out.

    >>> names("llama", 1, ["model.layers.0.self_attn.q_proj.weight"])
    {'model.layers.0.self_attn.q_proj.weight': 'blk.0.attn_q.weight'}
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(kind, blocks)
    found = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in modules}
    return {name: there for name, there in found.items() if there is not None}


def write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, tuple[int, ...]],
    values: Iterable[Tensor],
    number: Number,
) -> None:
    """Write one file, whole or not at all; one tensor is in memory at a time.

    Vectors stay float32, and so do matrices whose rows q8_0 cannot divide into 32s.

    Args:
        architecture: the name in `general.architecture`.
        metadata: the other keys.
        tensors: name and shape of each tensor, in order.
        values: the tensors, in the same order.

    Raises:
        FolderError: the disk is full, or the folder cannot be written.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION
    from gguf.quants import quantize

    kinds = {
        name: GGMLQuantizationType[KINDS[number if _fits(shape, number) else "float32"]]
        for name, shape in tensors.items()
    }
    with files.replacing(path.parent) as scratch, stage(f"writing {path}", len(tensors)) as progress:
        writer = GGUFWriter(scratch / path.name, architecture)
        writer.add_file_type(LlamaFileType[FILE_TYPES[number]])
        if number == "q8_0":
            writer.add_quantization_version(GGML_QUANT_VERSION)
        for key, value in metadata.items():
            _add(writer, key, value)
        for name, shape in tensors.items():
            numbers, size = GGML_QUANT_SIZES[kinds[name]]
            bytes_of = math.prod(shape) // numbers * size
            writer.add_tensor_info(name, shape, np.dtype(np.float32), bytes_of, raw_dtype=kinds[name])
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, array in values:
                writer.write_tensor_data(quantize(np.ascontiguousarray(array, np.float32), kinds[name]))
                progress.advance()
        finally:
            writer.close()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Callable[[], NDArray[np.float32]]]]:
    """The metadata of a file, and its tensors by name, each read and dequantised when it is called for.

    Raises:
        BaseError: it is no GGUF file, or was cut.
    """
    require_installed()
    from gguf import GGUFReader
    from gguf.quants import dequantize

    try:
        reader = GGUFReader(path)
        keys = {name: each.contents() for name, each in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise BaseError(f"{path} cannot be read as GGUF ({error}); download it again") from error

    def values(tensor: Any) -> NDArray[np.float32]:
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    return keys, {tensor.name: partial(values, tensor) for tensor in reader.tensors}


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _fits(shape: tuple[int, ...], number: Number) -> bool:
    return len(shape) > 1 and (number != "q8_0" or shape[-1] % 32 == 0)
