"""Compiles the CUDA sources beside this file to PTX with NVRTC; needs no device and no toolkit.

pip install --no-deps --target CUDA nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvcc-cu12==12.9.86
python3 compile.py CUDA
"""

import ctypes
import pathlib
import sys

TARGETS = {"attention": ["sm_90a"], "gemm": ["sm_80", "sm_90a"]}


def compile_to_ptx(nvrtc, source, target, includes):
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    options = [f"--gpu-architecture={target}", "--std=c++17", "-default-device"]
    options += [f"-I{folder}" for folder in includes]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if failed:
        sys.exit(f"{source.name} for {target}: {log.value.decode()}")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value.decode()


def main():
    root = pathlib.Path(sys.argv[1]) / "nvidia"
    nvrtc = ctypes.CDLL(str(root / "cuda_nvrtc/lib/libnvrtc.so.12"))
    includes = [root / "cuda_runtime/include", root / "cuda_nvcc/include"]
    here = pathlib.Path(__file__).parent
    for source in sorted(here.glob("*.cu")):
        for target in TARGETS.get(source.stem, ["sm_80"]):
            text = compile_to_ptx(nvrtc, source, target, includes)
            (here / f"{source.stem}.{target}.ptx").write_text(text)


main()
