#!/usr/bin/env bash
# The checks that need a GPU, in order of value. A stage has a time of its own, one line here and its
# whole log in $OUT/logs.txt; one that fails or runs out of time stops nothing.
#
#     [LIMIT=535] [OUT=folder] [STAGES='probe scan'] bash benchmarks/gpu/run.sh
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
LIMIT=${LIMIT:-535} # seconds for all of it
LEAST=${LEAST:-10}  # seconds; with less left no stage begins
OUT=${OUT:-$(mktemp -d)}
STAGES=${STAGES:-} # names of the stages to run; all if empty
PYTHON=${PYTHON:-python3}
GPU=benchmarks/gpu
BUNDLE=$GPU/bundle # what bundle.sh downloaded, if anything
WORK=$(mktemp -d)
BUILDER=
trap '[ -z "$BUILDER" ] || kill "$BUILDER" 2>/dev/null; rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
export PYTHONPATH=$WORK/site:$PWD PYTHONUNBUFFERED=1 COLUMNS=110

say() { printf '[%3d s] %s\n' "$SECONDS" "$*" | tee -a "$OUT/summary.txt"; }
wanted() { [ -z "$STAGES" ] || [[ " $STAGES " == *" $1 "* ]]; }

# stage NAME SECONDS COMMAND...
stage() {
    local name=$1 most=$2 begin=$SECONDS code=0 how log=$WORK/$1.log
    shift 2
    wanted "$name" || return 0
    ((most <= LIMIT - SECONDS)) || most=$((LIMIT - SECONDS))
    ((most >= LEAST)) || { say "$name: skipped, the time is used up"; return 0; }
    { timeout -s INT -k 8 "$most" "$@" >"$log" 2>&1 </dev/null || code=$?; } 2>/dev/null
    case $code in
        0) how=ok ;;
        124 | 137) how="STOPPED after $most s" ;;
        *) how="FAILED ($code)" ;;
    esac
    say "$name: $how in $((SECONDS - begin)) s: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-150)"
    # A test run that was stopped has no summary, but it has a line for every test.
    { grep -E '^(FAILED|ERROR) ' "$log" || grep -oE '(FAILED|ERROR) tests/.*' "$log"; } |
        cut -c 1-150 | head -n 12 | tee -a "$OUT/summary.txt"
    { printf '\n##### %s: %s\n' "$name" "$how"; tail -c 900000 "$log"; } >>"$OUT/logs.txt"
    find benchmarks/results -name '*-cuda.json' -newer "$WORK/begin" -exec cp {} "$OUT" \;
    return 0
}
# tests NAME SECONDS ARGUMENTS...
tests() {
    local name=$1 most=$2
    shift 2
    stage "$name" "$most" "$PYTHON" -m pytest -p no:cacheprovider -vv --tb short -n "${JOBS:-12}" --timeout 120 "$@"
}
# Wait so many seconds for the compiler: timings are meaningless while it uses the CPU.
built() {
    local until=$((SECONDS + $1))
    while [ -n "$BUILDER" ] && [ ! -e "$WORK/built" ] && ((SECONDS < until)); do sleep 1; done
    [ "$(cat "$WORK/built" 2>/dev/null)" = 0 ]
}
with_kernels() { export PYTHONPATH=$WORK/kernels:$WORK/site:$PWD; }
without_kernels() { export PYTHONPATH=$WORK/site:$PWD; }

touch "$WORK/begin"
if compgen -G "$BUNDLE/wheels/*.whl" >/dev/null; then
    stage wheels 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$WORK/site" "$BUNDLE"/wheels/*.whl
fi
if compgen -G "$BUNDLE/sources/*.tar.gz" >/dev/null && wanted cuda-tests; then
    (timeout -k 5 400 nice "$PYTHON" $GPU/build.py "$BUNDLE/sources" "$WORK/kernels" >"$WORK/build.log" 2>&1
     echo $? >"$WORK/built") &
    BUILDER=$!
fi
stage versions 60 "$PYTHON" $GPU/probe.py "$OUT/probe.json" versions

[ ! -d "$BUNDLE/golden" ] || export MSTEMBA_TEST_DATA=$PWD/$BUNDLE
# The tests of the networks, and every other file with tests that need a GPU.
mapfile -t FILES < <(grep -rl --include='test_*.py' 'mark\.gpu\|cuda\.is_available' tests | grep -v test_golden | sort)
tests gpu-tests 120 tests/model/test_scan.py tests/model/test_mstemba.py "${FILES[@]}"
tests goldens 60 -m '' tests/model/test_golden.py

compared=no
if built 60; then
    with_kernels
    compared=yes
    tests cuda-tests 60 -m '' tests/model/test_scan_cuda.py tests/model/test_golden.py -k cuda
fi
[ -z "$BUILDER" ] || say "mamba-ssm's kernels: $(tail -n 1 "$WORK/build.log" | cut -c 1-150)"
stage probe 80 "$PYTHON" $GPU/probe.py "$OUT/probe.json" ceilings tf32 exactness networks scans
stage scan 50 "$PYTHON" -m benchmarks.scan --device cuda --lengths 2500,65536 --seconds 0.3
stage model 50 "$PYTHON" -m benchmarks.model --device cuda --seconds 0.3 --arch mstemba
stage model-v3 50 "$PYTHON" -m benchmarks.model --device cuda --seconds 0.3 --arch mstemba-v3
without_kernels
stage film 60 "$PYTHON" -m benchmarks.videos "$WORK/film.mp4"
stage clip 110 "$PYTHON" -m benchmarks.extract "$WORK/film.mp4" --device cuda --backbone clip \
    --model ViT-L-14-quickgelu --copies 16 --rounds 1 --quick
stage efficientnet 60 "$PYTHON" -m benchmarks.extract "$WORK/film.mp4" --device cuda --copies 16 --rounds 1 --quick
stage demo 100 "$PYTHON" -m mstemba demo "$WORK/demo" --device cuda
stage probe-more 60 "$PYTHON" $GPU/probe.py "$OUT/probe.json" offsets clip tuning
if [ $compared = no ] && built 60; then
    with_kernels
    tests cuda-tests 60 -m '' tests/model/test_scan_cuda.py tests/model/test_golden.py -k cuda
    stage scan-again 50 "$PYTHON" -m benchmarks.scan --device cuda --lengths 2500,65536 --seconds 0.3
    without_kernels
fi
if wanted tables && grep -q '"gpu": ' "$OUT/probe.json" 2>/dev/null; then
    cp "$OUT/probe.json" benchmarks/results/
    stage tables 30 "$PYTHON" -m benchmarks.tables
    cp benchmarks/README.md "$OUT/benchmarks.md"
fi
# What a user of a GPU machine sees of the tests, and the kernels' memory accesses, as time allows.
tests all-tests 150 --ignore tests/pipeline/outputs/page --ignore tests/pipeline/extract/test_ray_engine.py
PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage memcheck 120 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$PYTHON" -m pytest -p no:cacheprovider tests/model/test_scan_triton.py \
    -k 'scan_equals_reference or convolution_equals_reference'

[ -z "$BUILDER" ] || { printf '\n##### build\n'; cat "$WORK/build.log"; } >>"$OUT/logs.txt"
echo
for name in scan scan-again model model-v3 clip efficientnet; do
    grep -hE '^[│┃]|^ +(Selective scan|Forward|Scoring|frames a second|mstemba)' "$WORK/$name.log" 2>/dev/null
done
for name in probe probe-more; do sed '/^Traceback/,$d' "$WORK/$name.log" 2>/dev/null; done
say "all stages done; in $OUT: $(cd "$OUT" && echo *)"
