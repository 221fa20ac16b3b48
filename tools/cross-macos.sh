#!/usr/bin/env bash
# Compiles every C source and the MLX plugin for Apple Silicon on a Linux machine, with the flags and the choice of
# sources of meson.build. The compiler is zig's, from PyPI, which has Apple's libc headers. Nothing of it can run here.
#   libraries   headers of Debian's packages, the same everywhere but for OpenSSL's configuration.h (this machine's: 64
#               bits and little endian, as there). There is nothing to link, so their names stay open in the programs,
#               and cross_symbols.py says whether an open name is really one of theirs
#   plugin      against the headers and the libmlx.dylib of the macOS wheel; the linker finds every name
#   tests       not compiled
# Debian: the packages that the build itself needs. An argument is the version of MLX, else the newest.
set -eu
cd "$(dirname "$0")/.."
out=$PWD/build-macos mlx=${1:-}
mkdir -p "$out/include" "$out/pkgconfig" "$out/bin"

if [ ! -x "$out/zig/ziglang/zig" ]; then
    echo "cross-macos: fetching ziglang from PyPI"
    python3 -m pip install -q --root-user-action=ignore --no-deps --target "$out/zig" ziglang
fi
if [ ! -d "$out/wheel/mlx/include" ]; then
    echo "cross-macos: fetching mlx-metal for macOS from PyPI"
    python3 -m pip download -q --no-deps --only-binary=:all: --platform macosx_14_0_arm64 \
        -d "$out" "mlx-metal${mlx:+==}$mlx"
    python3 -m zipfile -e "$out"/mlx_metal-*.whl "$out/wheel"
fi

# Headers one by one: with /usr/include itself, those of this machine's libc would come along.
for package in libjansson-dev libgrpc-dev libprotobuf-c-dev libmicrohttpd-dev libyaml-dev libpcre2-dev \
    libutf8proc-dev libssl-dev; do
    for h in $(dpkg -L $package | grep '\.h$'); do
        to=${h#/usr/include/}
        to=$out/include/${to#"$(gcc -print-multiarch)"/}
        mkdir -p "${to%/*}"
        ln -sf "$h" "$to"
    done
done
for name in jansson libcrypto openssl yaml-0.1 libpcre2-8 libutf8proc libprotobuf-c libmicrohttpd grpc gpr; do
    printf 'Name: %s\nDescription: headers only\nVersion: %s\nCflags: -isystem %s\nLibs: %s\n' $name \
        "$(pkg-config --modversion $name)" "$out/include" -Wl,-undefined,dynamic_lookup >"$out/pkgconfig/$name.pc"
done

# Meson asks for the linker's name, and knows Apple's by these answers; zig's takes Apple's arguments.
for tool in cc c++ ar; do
    target="-target aarch64-macos.14.0"
    [ $tool = ar ] && target=
    cat >"$out/bin/$tool" <<SH
#!/bin/sh
case "\$*" in
-Wl,--version) echo "ld: unknown option: --version" >&2; exit 1 ;;
-Wl,-v) echo "PROGRAM:ld PROJECT:ld64-956" >&2; exit 0 ;;
esac
for a in "\$@"; do # zig names what -march would add to a processor
    shift
    case \$a in -march=*i8mm) a=-mcpu=apple_m2 ;; -march=*) a=-mcpu=apple_m1 ;; esac
    set -- "\$@" "\$a"
done
exec "$out/zig/ziglang/zig" $tool $target "\$@"
SH
    chmod +x "$out/bin/$tool"
done
cat >"$out/cross.ini" <<INI
[binaries]
c = '$out/bin/cc'
cpp = '$out/bin/c++'
ar = '$out/bin/ar'
pkgconfig = 'pkg-config'
exe_wrapper = 'true'
[properties]
pkg_config_libdir = '$out/pkgconfig'
[host_machine]
system = 'darwin'
cpu_family = 'aarch64'
cpu = 'arm64'
endian = 'little'
INI
root=$PWD
cd "$out" # zig leaves its answers to Meson's questions where it stands
# "true" runs the program that prints manual pages: they stay empty
[ -f tree/build.ninja ] || meson setup tree "$root" --cross-file "$out/cross.ini" --buildtype=release \
    -Dtests=false -Dmlx=enabled -Dmlx_root="$out/wheel/mlx"
ninja -k 0 -C tree
"$root/tools/cross_symbols.py" $(find tree/src/cli -maxdepth 1 -type f -name 'mlx*' -perm -u+x) \
    tree/src/api/libmlx_distributed.0.dylib
echo "cross-macos: compiled, linked, and no name is missing"
