#!/bin/sh
# Installs what the build needs and is missing: apt (directly as root, else through sudo) or brew.
# Says nothing and takes milliseconds when all is there. docs/dependencies.md says what each is for.
set -eu

APT="build-essential meson ninja-build pkg-config libgrpc-dev libprotobuf-c-dev
protobuf-c-compiler libmicrohttpd-dev libjansson-dev libyaml-dev libpcre2-dev libutf8proc-dev
libssl-dev libcmocka-dev clang-format python3 python3-venv curl"
BREW="meson ninja pkgconf grpc protobuf-c libmicrohttpd jansson libyaml pcre2 utf8proc
openssl@3 cmocka clang-format python3"

give_up() {
    echo "setup-deps: $1" >&2
    echo "setup-deps: still missing:$missing" >&2
    echo "setup-deps: install these, then run make again" >&2
    exit 1
}

if command -v dpkg-query >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
    # one query for all; a package that dpkg does not know prints no line
    have=$(dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' $APT 2>/dev/null |
        sed -n 's/^\([^ :]*\)[^ ]* installed$/\1/p')
    missing=""
    for p in $APT; do
        echo "$have" | grep -qx -- "$p" || missing="$missing $p"
    done
    [ -z "$missing" ] && exit 0
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || give_up "not root, and there is no sudo"
        as_root="sudo"
    fi
    echo "setup-deps: installing$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # package lists may be there already; only fetch them when the first try fails
    $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
        { $as_root apt-get update -qq &&
          $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null; } ||
        give_up "apt-get could not install them (no network, or not a Debian 12 / Ubuntu 22.04 or newer?)"
    exit 0
fi

if command -v brew >/dev/null 2>&1; then
    have=$(brew list --formula -1 2>/dev/null || true)
    missing=""
    for p in $BREW; do
        # python3 is an alias of a versioned formula
        case $p in python3) command -v python3 >/dev/null 2>&1 && continue ;; esac
        echo "$have" | grep -qx -- "$p" || missing="$missing $p"
    done
    [ -z "$missing" ] && exit 0
    echo "setup-deps: installing$missing" >&2
    brew install --quiet $missing || give_up "brew could not install them (no network?)"
    exit 0
fi

# Another system: the build works when the libraries are there, whatever put them there.
missing=""
for c in cc meson ninja pkg-config protoc-c python3; do
    command -v $c >/dev/null 2>&1 || missing="$missing $c"
done
for l in grpc libprotobuf-c libmicrohttpd jansson yaml-0.1 libpcre2-8 libutf8proc libcrypto; do
    pkg-config --exists $l 2>/dev/null || missing="$missing $l"
done
[ -z "$missing" ] || give_up "neither apt-get nor brew is here"
