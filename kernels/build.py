#!/usr/bin/env python3
"""Compiles kernels/*.cu to kernels/ptx/*.ptx with the compiler of record: NVRTC 11.8.89 from PyPI.

    build.py [--tools DIR]          writes kernels/ptx/
    build.py --check [--tools DIR]  compiles again and compares every byte with what is there

The compiler is looked for below DIR (by default target/tools/kernels) and put there by pip when it is missing. It needs
no GPU, no driver and no CUDA toolkit. The same sources give the same bytes on every machine.
"""

import argparse
import ctypes
import hashlib
import pathlib
import re
import subprocess
import sys

PACKAGE, VERSION = "nvidia-cuda-nvrtc-cu11", "11.8.89"
# Relocatable code only makes variables that the host looks up by name visible symbols; the instructions are the same.
OPTIONS = ["--gpu-architecture=compute_70", "--std=c++17", "--relocatable-device-code=true"]
HERE = pathlib.Path(__file__).resolve().parent
MODULES = ["blake3", "fingerprint", "probe"]


def compiler(tools):
    """The loaded NVRTC, after installing it if need be."""
    home = tools / f"{PACKAGE}-{VERSION}"
    library = home / "nvidia/cuda_nvrtc/lib/libnvrtc.so.11.2"
    if not library.is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        subprocess.run(pip + ["--no-deps", "--target", str(home), f"{PACKAGE}=={VERSION}"], check=True)
    return ctypes.CDLL(str(library))


def ask(nvrtc, call, *arguments):
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    code = getattr(nvrtc, call)(*arguments)
    if code != 0:
        raise RuntimeError(f"{call}: {nvrtc.nvrtcGetErrorString(code).decode()}")


def sources(name):
    """The module's own file and all that it includes, in the order of inclusion; without what only a CPU build reads."""
    found = []

    def follow(path):
        if path in found:
            return
        found.append(path)
        for included in re.findall(r'^#include "([^"/]+)"', (HERE / path).read_text(), re.MULTILINE):
            follow(included)

    follow(f"{name}.cu")
    return found


def compile_to_ptx(nvrtc, name):
    files = sources(name)
    headers = files[1:]
    strings = ctypes.c_char_p * max(len(headers), 1)
    texts = strings(*[(HERE / file).read_bytes() for file in headers])
    names = strings(*[file.encode() for file in headers])
    program = ctypes.c_void_p()
    text = (HERE / files[0]).read_bytes()
    ask(nvrtc, "nvrtcCreateProgram", ctypes.byref(program), text, files[0].encode(), len(headers), texts, names)
    options = (ctypes.c_char_p * len(OPTIONS))(*[option.encode() for option in OPTIONS])
    code = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options)
    size = ctypes.c_size_t()
    if code != 0:
        ask(nvrtc, "nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        ask(nvrtc, "nvrtcGetProgramLog", program, log)
        raise RuntimeError(f"{files[0]} does not compile:\n{log.value.decode()}")
    ask(nvrtc, "nvrtcGetPTXSize", program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    ask(nvrtc, "nvrtcGetPTX", program, ptx)
    ask(nvrtc, "nvrtcDestroyProgram", ctypes.byref(program))
    # The size counts a closing NUL, at which newer assemblers stop with an error.
    body = ptx.raw.rstrip(b"\0").strip() + b"\n"
    lines = ["// Made by kernels/build.py. Do not edit: change the sources and run it again."]
    lines.append(f"// compiler: {PACKAGE} {VERSION}, options: {' '.join(OPTIONS)}")
    for file in files:
        lines.append(f"// source: kernels/{file} sha256:{hashlib.sha256((HERE / file).read_bytes()).hexdigest()}")
    return "\n".join(lines).encode() + b"\n" + body


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=pathlib.Path, default=HERE.parent / "target/tools/kernels")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    nvrtc = compiler(arguments.tools)
    different = []
    for name in MODULES:
        made = compile_to_ptx(nvrtc, name)
        file = HERE / "ptx" / f"{name}.ptx"
        if arguments.check:
            if not file.is_file() or file.read_bytes() != made:
                different.append(file.name)
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(made)
            print(f"{file.name}: {len(made)} bytes, {hashlib.sha256(made).hexdigest()}")
    if different:
        sys.exit(f"{', '.join(different)}: not what the sources give; run kernels/build.py and commit the result")
    if arguments.check:
        print(f"{len(MODULES)} PTX files are what {PACKAGE} {VERSION} makes of the sources, byte for byte")


if __name__ == "__main__":
    main()
