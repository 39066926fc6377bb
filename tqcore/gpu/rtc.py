"""CUDA C++ compiled at run time by NVRTC and launched on torch's streams."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

__all__ = ["Kernel", "Long", "Module", "capture_id", "compile_module"]

_STATIC_SHARED = 48 << 10  # bytes of dynamic shared memory that a kernel gets without asking


class Long(int):
    """An integer passed to a kernel as int64; plain ints go as int32."""


@lru_cache(maxsize=1)
def _bindings() -> tuple[Any, Any]:
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError as error:
        raise ImportError(
            "compiling CUDA kernels needs the package cuda-bindings, which torch's CUDA wheels depend on: "
            "pip install cuda-bindings"
        ) from error
    return driver, nvrtc


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the bindings returned behind its error code."""
    code, *values = result
    if int(code) != 0:
        driver, _ = _bindings()
        text = str(code)
        if isinstance(code, driver.CUresult):
            text = driver.cuGetErrorString(code)[1].decode()
        raise RuntimeError(f"CUDA: {text} ({code!r})")
    return values[0] if len(values) == 1 else tuple(values)


def capture_id(stream: int) -> int:
    """Number of the capture that the stream takes part in, of no other in the process."""
    driver, _ = _bindings()
    return int(_checked(driver.cuStreamGetCaptureInfo(stream))[1])


class Kernel:
    """One compiled kernel, callable as ``kernel(grid, block, args, shared=0)``.

    Parameters
    ----------
    function : object
        Handle of the driver.
    name : str
        Name in the source.
    """

    def __init__(self, function: Any, name: str) -> None:
        self._function, self.name = function, name
        self._shared = _STATIC_SHARED

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int = 0
    ) -> None:
        """Launch on torch's current stream; nothing is allocated or waited for.

        Parameters
        ----------
        grid, block : tuple of int
            Up to three sizes.
        args : tuple
            CUDA tensors and None (pointers), `Long` (int64), int and bool (int32), float (float32), `ctypes.Structure`.
        shared : int
            Bytes of dynamic shared memory.
        """
        driver, _ = _bindings()
        if shared > self._shared:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(self._function, attribute, shared))
            self._shared = shared
        values = [_argument(value) for value in args]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = torch.cuda.current_stream(torch.cuda.current_device()).cuda_stream
        sizes = (*grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block)))
        (code,) = driver.cuLaunchKernel(self._function, *sizes, shared, stream, ctypes.addressof(pointers), 0)
        if int(code) != 0:
            _checked((code,))


_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    torch.Tensor: lambda value: ctypes.c_void_p(value.data_ptr()),
    type(None): ctypes.c_void_p,
    int: ctypes.c_int32,
    bool: ctypes.c_int32,
    Long: ctypes.c_int64,
    float: ctypes.c_float,
}


def _argument(value: Any) -> Any:
    """The ctypes value of a kernel argument."""
    conversion = _CONVERSIONS.get(type(value))
    if conversion is not None:
        return conversion(value)
    if isinstance(value, ctypes.Structure):
        return value
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    raise TypeError(
        f"a kernel argument must be a tensor, None, int, Long, float or ctypes.Structure, got {type(value).__name__}"
    )


class Module:
    """Kernels of one source on one device."""

    def __init__(self, image: bytes) -> None:
        driver, _ = _bindings()
        self._module = _checked(driver.cuModuleLoadData(image))
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel:
        """The kernel declared ``extern "C"`` under `name`."""
        if name not in self._kernels:
            driver, _ = _bindings()
            function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
            self._kernels[name] = Kernel(function, name)
        return self._kernels[name]


@lru_cache(maxsize=256)
def _image(source: str, options: tuple[str, ...], arch: str) -> bytes:
    """Machine code of a source for an architecture such as ``sm_90``."""
    _, nvrtc = _bindings()
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    flags = [flag.encode() for flag in (f"--gpu-architecture={arch}", "--std=c++17", *options)]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if int(code) != 0:
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"NVRTC failed ({code!r}):\n{bytes(log).decode(errors='replace')}")
    image = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, image))
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(image)


@lru_cache(maxsize=256)
def _module(source: str, options: tuple[str, ...], device: int) -> Module:
    major, minor = torch.cuda.get_device_capability(device)
    with torch.cuda.device(device):
        return Module(_image(source, options, f"sm_{major}{minor}"))


def compile_module(source: str, options: tuple[str, ...] = ()) -> Module:
    """Compile CUDA C++ for torch's current device, once per source, options and device.

    Parameters
    ----------
    source : str
        CUDA C++ that includes no header.
    options : tuple of str
        Further options of NVRTC, such as ``-DNAME=VALUE``.

    Returns
    -------
    Module
        Its kernels.

    Raises
    ------
    ImportError
        Without cuda-bindings.
    RuntimeError
        If the compiler rejects the source, with its log.
    """
    return _module(source, options, torch.cuda.current_device())
