#!/usr/bin/env bash
# Installs what is missing: tools/deps.sh build|test|all
#   build   compiler, CMake, Ninja and the libraries the program links against
#   test    also what `make check` uses; only cmocka is a must there, anything else that is missing becomes a skip
#   all     also linters and formatter, and what runs the tests on emulated 64-bit ARM (adds that foreign architecture
#           to dpkg on Debian); for continuous integration and contributors
# With apt and root (or sudo) it installs; otherwise it prints what to install. Does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

group=${1:-build}
native=$(dpkg --print-architecture 2>/dev/null || true)
must=(gcc libc6-dev make cmake ninja-build pkg-config libjansson-dev libpcre2-dev libxxhash-dev libsqlite3-dev
    libedit-dev)
may=()
case $group in
build) ;;
test | all)
    must+=(libcmocka-dev)
    may+=(g++ clang libclang-rt-dev python3-venv)
    if [ "$group" = all ]; then
        may+=(clang-format clang-tidy cppcheck shellcheck gcc-aarch64-linux-gnu qemu-user-static)
        if [ "$native" = amd64 ] && grep -q '^ID=debian' /etc/os-release; then
            may+=(libc6-dev:arm64 libjansson-dev:arm64 libpcre2-dev:arm64 libxxhash-dev:arm64
                libsqlite3-dev:arm64 libedit-dev:arm64
                libcmocka-dev:arm64)
        fi
    fi
    ;;
*)
    echo "usage: tools/deps.sh build|test|all" >&2
    exit 2
    ;;
esac

have_package()
{
    case $1 in *:*) architecture=${1#*:} ;; *) architecture=$native ;; esac
    dpkg-query -W -f '${Architecture} ${db:Status-Status}\n' "$1" 2>/dev/null |
        grep -qxE "($architecture|all) installed"
}

# Without dpkg: judge by what can be found, and name what cannot.
found_without_apt()
{
    case $1 in
    libc6-dev | g++ | libclang-rt-dev | python3-venv | *:*) return 0 ;;
    ninja-build) command -v ninja >/dev/null ;;
    gcc) command -v cc >/dev/null ;;
    gcc-aarch64-linux-gnu) command -v aarch64-linux-gnu-gcc >/dev/null ;;
    qemu-user-static) command -v qemu-aarch64 qemu-aarch64-static >/dev/null ;;
    libjansson-dev) pkg-config --exists jansson 2>/dev/null ;;
    libpcre2-dev) pkg-config --exists libpcre2-8 2>/dev/null ;;
    libsqlite3-dev) pkg-config --exists sqlite3 2>/dev/null ;;
    libxxhash-dev) pkg-config --exists libxxhash 2>/dev/null ;;
    libedit-dev) pkg-config --exists libedit 2>/dev/null ;;
    libcmocka-dev) pkg-config --exists cmocka 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

has_apt=false
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null && has_apt=true

list_missing()
{
    missing=()
    for package in "$@"; do
        if ! found_without_apt "$package" || { $has_apt && ! have_package "$package"; }; then
            # A tool from elsewhere is as good as the package.
            case $package in
            gcc | make | cmake | ninja-build | pkg-config | clang | clang-format | clang-tidy | cppcheck | shellcheck)
                found_without_apt "$package" && continue
                ;;
            esac
            missing+=("$package")
        fi
    done
}

as_root=()
can_install=false
if $has_apt; then
    if [ "$(id -u)" = 0 ]; then
        can_install=true
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        can_install=true
        as_root=(sudo)
    fi
fi

list_missing "${must[@]}" "${may[@]}"
if [ ${#missing[@]} -gt 0 ] && $can_install; then
    echo "installing: ${missing[*]}"
    case "${missing[*]}" in
    *:arm64*) "${as_root[@]}" dpkg --add-architecture arm64 ;;
    esac
    "${as_root[@]}" apt-get update -qq || true
    available=()
    for package in "${missing[@]}"; do
        # Not every release has every optional package (libclang-rt-dev is part of clang elsewhere).
        if apt-cache show "$package" >/dev/null 2>&1; then available+=("$package"); fi
    done
    if [ ${#available[@]} -gt 0 ]; then
        install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends)
        if ! "${install[@]}" "${available[@]}" >/dev/null 2>&1; then
            # One that cannot be had must not keep the others away.
            for package in "${available[@]}"; do
                "${install[@]}" "$package" >/dev/null || echo "note: $package could not be installed" >&2
            done
        fi
    fi
    list_missing "${must[@]}"
else
    optional=("${missing[@]}")
    list_missing "${must[@]}"
    if [ ${#missing[@]} -eq 0 ] && [ ${#optional[@]} -gt 0 ]; then
        echo "note: these are missing, what needs them is skipped: ${optional[*]}" >&2
    fi
fi
if [ ${#missing[@]} -gt 0 ]; then
    if $has_apt; then
        echo "missing packages. Install them, then try again:" >&2
        echo "    sudo apt-get install ${missing[*]}" >&2
    else
        echo "missing (Debian package names; your system has its own): ${missing[*]}" >&2
    fi
    exit 1
fi

# Older Debian and Ubuntu releases carry an older CMake; PyPI has a new one.
if ! printf '3.25\n%s\n' "$(cmake --version | sed -n 's/^cmake version //p')" | sort -VC; then
    if [ ! -x .venv/bin/cmake ] && ! { python3 -m venv .venv && .venv/bin/pip install -q 'cmake>=3.25,<4'; }; then
        echo "CMake 3.25 or newer is needed; found $(cmake --version | head -n 1)" >&2
        exit 1
    fi
fi

# Python packages that tests compare with. Without them those tests are skipped.
if [ "$group" != build ] && ! cmp -s tests/requirements.txt .venv/installed.txt; then
    if python3 -m venv .venv >/dev/null 2>&1 &&
        .venv/bin/pip install -q --disable-pip-version-check --retries 1 -r tests/requirements.txt; then
        cp tests/requirements.txt .venv/installed.txt
    else
        echo "note: no Python packages (python3-venv or PyPI out of reach); what needs them is skipped" >&2
    fi
fi
