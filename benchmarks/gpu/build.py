"""Build the CUDA kernels of mamba-ssm and causal-conv1d for the GPU of this machine alone.

    python benchmarks/gpu/build.py SOURCES FOLDER

SOURCES holds the two source archives (.tar.gz). FOLDER then goes onto PYTHONPATH: it holds the
compiled modules and both Python packages. What mstemba never calls is not compiled, or the build
would take many minutes: for the other types (float16, complex numbers, weights in bfloat16) there
are functions that raise, and the switches in FIXED have the value that every call from mstemba has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

from mstemba.pipeline.devices import cores

# Name of a module, the package that it belongs to, and the folder of its sources.
MODULES = (
    ("selective_scan", "mamba_ssm", "csrc/selective_scan"),
    ("causal_conv1d", "causal_conv1d", "csrc"),
)
WANTED = {("float", "float"), ("at::BFloat16", "float")}
"""Types of the signals and of the weights."""
# `template void NAME<signals, weights>(PARAMS &params, cudaStream_t stream);`
INSTANCE = re.compile(r"^template void (\w+)<([\w:]+), ([\w:]+)>\((\w+) ?&.*;$", re.MULTILINE)
# `BOOL_SWITCH(params.delta_softplus, kDeltaSoftplus, ...`
FIXED = {
    "is_variable_B": "true",
    "is_variable_C": "true",
    "delta_softplus": "true",
    "silu_activation": "true",
    "seq_idx_ptr": "false",
    "dfinal_states_ptr": "false",
    "deterministic": "false",
}
SWITCH = re.compile(rf"BOOL_SWITCH\(params\.({'|'.join(FIXED)})[^,]*,")
MACRO = """
#define FIXED(VALUE, NAME, ...) [&] { constexpr bool NAME = VALUE; return __VA_ARGS__(); }()
"""
STUBS = """#include <stdexcept>
#include <cuda_runtime.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include "{header}"
using complex_t = c10::complex<float>;
"""
STUB = """template <class I, class W> void {name}({params} &, cudaStream_t) {{
    throw std::runtime_error("{name}: not built for these types");
}}
"""
NVCC = (
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    *(
        f"-U__CUDA_NO_{name}__"
        for name in (
            "HALF_OPERATORS",
            "HALF_CONVERSIONS",
            "BFLOAT16_OPERATORS",
            "BFLOAT16_CONVERSIONS",
            "BFLOAT162_OPERATORS",
            "BFLOAT162_CONVERSIONS",
        )
    ),
)


def main() -> None:
    """Unpack, compile all files side by side, link, and try the import."""
    if len(sys.argv) != 3:
        sys.exit("usage: build.py SOURCES FOLDER")
    sources, target = (Path(argument).resolve() for argument in sys.argv[1:])
    begin = time.perf_counter()
    target.mkdir(parents=True, exist_ok=True)
    for archive in sources.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            file.extractall(target, filter="data")
    files = {}
    for name, package, place in MODULES:
        (unpacked,) = target.glob(f"{package}-*")
        (target / package).symlink_to(unpacked / package)
        folder = unpacked / place
        files[f"{name}_cuda"] = [folder / f"{name}.cpp", *trim(folder, f"{name}.h")]
    with ThreadPoolExecutor(cores()) as pool:
        made = {m: [pool.submit(compiled, file, m) for file in files[m]] for m in files}
    for module, objects in made.items():
        link([each.result() for each in objects], target / f"{module}.so")
    # As released it imports language models and what those need.
    (target / "mamba_ssm" / "__init__.py").write_text("")
    check_import(target)
    print(f"built in {time.perf_counter() - begin:.0f} s")


def trim(folder: Path, header: str) -> list[Path]:
    """Take what is not wanted out of the CUDA sources, and return the files to compile."""
    files, stubs, unwanted = [], {}, []
    switch = folder / "static_switch.h"
    switch.write_text(switch.read_text() + MACRO)
    for file in folder.glob("*.cu*"):
        file.write_text(SWITCH.sub(lambda found: f"FIXED({FIXED[found[1]]},", file.read_text()))
    for file in sorted(folder.glob("*.cu")):
        text, keep = file.read_text(), False
        for found in INSTANCE.finditer(text):
            name, signals, weights, params = found.groups()
            if (signals, weights) in WANTED:
                keep = True
                continue
            stubs[name] = STUB.format(name=name, params=params)
            unwanted.append(found[0])
            text = text.replace(found[0], "")
        file.write_text(text)
        files += [file] if keep else []
    text = STUBS.format(header=header) + "".join(stubs.values()) + "\n".join(unwanted)
    (folder / "stubs.cpp").write_text(text)
    return [*files, folder / "stubs.cpp"]


def compiled(source: Path, module: str) -> Path:
    """Compile one source to an object file."""
    begin, made = time.perf_counter(), source.with_suffix(".o")
    includes = [*cpp_extension.include_paths(device_type="cuda"), sysconfig.get_path("include")]
    options = ["-O3", "-std=c++17", f"-DTORCH_EXTENSION_NAME={module}"]
    options += [f"-I{path}" for path in includes]
    if source.suffix == ".cu":
        major, minor = torch.cuda.get_device_capability()
        card = f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"
        command = [f"{cpp_extension.CUDA_HOME}/bin/nvcc", *NVCC, card, "-Xcompiler", "-fPIC"]
    else:
        command = ["g++", "-fPIC"]
    command += [*options, "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr)
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        sys.exit(f"{source.name}: {(errors or ['the compiler failed'])[0]}")
    print(f"{source.name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return made


def link(objects: list[Path], module: Path) -> None:
    """Link object files to a Python module."""
    paths = cpp_extension.library_paths(device_type="cuda")
    libraries = ("c10", "c10_cuda", "torch_cpu", "torch_cuda", "torch", "torch_python", "cudart")
    command = ["g++", "-shared", *map(str, objects), *(f"-L{path}" for path in paths)]
    command += [
        *(f"-l{name}" for name in libraries),
        f"-Wl,-rpath,{Path(torch.__file__).parent}/lib",
    ]
    subprocess.run([*command, "-o", str(module)], check=True)


def check_import(target: Path) -> None:
    """Import what mstemba and its benchmarks need, or exit with the reason why it fails."""
    imports = (
        "import torch, selective_scan_cuda; from causal_conv1d import causal_conv1d_fn; "
        "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", imports]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(done.stderr)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.exit(f"built, but cannot be imported: {reason}")


if __name__ == "__main__":
    main()
