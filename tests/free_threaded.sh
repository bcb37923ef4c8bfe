#!/usr/bin/env bash
# Runs the suite on a CPython without the GIL.
#
#     tests/free_threaded.sh [pytest arguments]        # -m stress tests/stress: minutes of load
#
# The interpreter is $FREE_THREADED_PYTHON, or one of the names below on PATH. Else it is built once (two or three
# minutes, needs no root) from Debian's source package, got with apt from the mirror this machine is set up for, and kept
# in ~/.cache/lockgate. FREE_THREADED_VERSION and FREE_THREADED_SUITE choose another one: 3.14 from sid, for example.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${FREE_THREADED_VERSION:-3.13}
suite=${FREE_THREADED_SUITE:-trixie}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lockgate
prefix=$cache/cpython-${version}t

say() { echo "free_threaded.sh: $*"; }
fail() { say "$*" >&2; exit 1; }
without_gil() { "$1" -c 'import sys, sysconfig; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))' 2>/dev/null; }

find_python() {
    local name names="python3.14t python3.13t"
    if [ -n "${FREE_THREADED_VERSION:-}" ]; then names=python${version}t; fi
    for name in ${FREE_THREADED_PYTHON:-$names} "$prefix/bin/python${version}t"; do
        name=$(command -v "$name") && without_gil "$name" && echo "$name" && return
        if [ -n "${FREE_THREADED_PYTHON:-}" ]; then fail "$FREE_THREADED_PYTHON is no free-threaded CPython"; fi
    done
    return 1
}

# apt with state of its own: the machine's lists and sources stay as they are.
private_apt() {
    apt-get -qq -o Dir::State="$work/state" -o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist="$work/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User="$(id -un)" "$@"
}

build_python() {
    local tool mirror keyring
    for tool in apt-get gcc make tar xz; do
        command -v "$tool" >/dev/null || fail "no $tool here; set FREE_THREADED_PYTHON to a free-threaded CPython"
    done
    for tool in zlib.h openssl/ssl.h ffi.h; do
        echo "#include <$tool>" | gcc -E - >/dev/null 2>&1 ||
            fail "no <$tool> here: apt-get install zlib1g-dev libssl-dev libffi-dev"
    done
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' 'Component: main' |
        awk '$2 == "Debian" { print $1; exit }')
    if [ -z "$mirror" ]; then # apt-get update has never run here
        mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
            grep -oE '(https?|file|mirror\+https?)://?[^ ]*/debian/?( |$)' | head -n 1)
    fi
    [ -n "$mirror" ] || fail "apt is not set up for Debian; set FREE_THREADED_PYTHON to a free-threaded CPython"
    keyring=$(dpkg -L debian-archive-keyring | grep '/debian-archive-keyring\.gpg$' | head -n 1)

    mkdir -p "$cache"
    exec 9>"$cache/building" && flock 9
    if [ -x "$prefix/bin/python${version}t" ]; then exec 9>&- && return; fi # somebody else has built it meanwhile
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/source"
    echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
    say "fetching the source of python$version ($suite)"
    private_apt update
    (cd "$work/source" && private_apt source --download-only "python$version") || fail "no source of python$version"
    tar -xf "$work"/source/*.orig.tar.xz -C "$work/source" --strip-components=1 # as upstream made it, with pip
    say "building it; what is said goes to $cache/build.log"
    (
        cd "$work/source" &&
            ./configure --prefix="$prefix" --disable-gil --with-ensurepip=install --disable-test-modules &&
            make -j "$(nproc)" &&
            make install DESTDIR="$work/installed"
    ) >"$cache/build.log" 2>&1 || { tail -n 20 "$cache/build.log" >&2 && fail "the build failed"; }
    rm -rf "$prefix"
    mv "$work/installed$prefix" "$prefix" # whole or not at all
    rm -rf "$work" # the trap does not come if the last command is an exec
    exec 9>&-
}

python=$(find_python) || {
    [ -z "${FREE_THREADED_PYTHON:-}" ] || exit 1
    build_python
    python=$(find_python) || fail "what was built is no free-threaded CPython"
}
environment=$cache/venv-$("$python" -c 'import hashlib, sys; v = sys.version + sys.executable
print("%d.%dt-" % sys.version_info[:2] + hashlib.sha256(v.encode()).hexdigest()[:8])')
[ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
python=$environment/bin/python
"$python" -m pip install -qq --disable-pip-version-check --root-user-action=ignore --prefer-binary --editable '.[test]'

export PYTHON_GIL=0
"$python" -c 'import sys, janus, channels
print(f"CPython {sys.version}\nthe GIL is", "on" if sys._is_gil_enabled() else "off")
sys.exit(sys._is_gil_enabled())'
if [ $# = 0 ]; then
    for directory in tests/channels tests/conformance tests/stress tests/runtime; do
        if compgen -G "$directory/test_*.py" >/dev/null; then set -- "$@" "$directory"; fi
    done
fi
exec "$python" -m pytest --override-ini "cache_dir=$cache/pytest" "$@"
