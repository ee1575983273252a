#!/usr/bin/env bash
# Builds the small Linux guest on which the live tests and the demo run.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/build-guest.sh [--force] [--help]

Writes .deps/guest/vmlinuz and .deps/guest/initramfs: a distribution kernel
(downloaded and unpacked, not installed) and a root file system of busybox and a
statically built fio. The guest runs forever and does the disk work that its
kernel command line asks for, one parameter per disk:

    blkpilot.vda=rw=randread,bs=4k,iodepth=4,size=64m
    blkpilot.vdb=rw=randread,bs=4k,runtime=30/rw=randwrite,bs=16k,runtime=10
    blkpilot.vdc=idle

A value is a list of fio options, separated by commas; '/' separates phases, which
repeat in a circle (each but a single one needs runtime=SECONDS). It prints
"blkpilot-guest: ready" on the serial console once the work has been started.

Nothing is done when the result is newer than its inputs (--force builds anyway).
Needs: apt-get, dpkg-dev, gcc, make, busybox-static, cpio, xz-utils.
TEXT
}

force=no
for argument in "$@"; do
    case "$argument" in
        --force) force=yes ;;
        --help | -h) usage; exit 0 ;;
        *) echo "build-guest: unknown argument '$argument'; see --help" >&2; exit 2 ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out="$root/.deps/guest"
inputs=$(cat "$root/scripts/build-guest.sh" "$root/scripts/guest-init.sh" /etc/os-release | sha256sum | cut -d' ' -f1)

if [[ $force == no && -s $out/vmlinuz && -s $out/initramfs && $(cat "$out/inputs.sha256" 2>/dev/null) == "$inputs" ]]; then
    exit 0
fi

say() { echo "build-guest: $*"; }
die() { echo "build-guest: $*" >&2; exit 1; }

if [[ $(uname -m) != x86_64 ]]; then
    die "the guest is built for x86_64 only, this machine is $(uname -m)"
fi
for tool in apt-get apt-cache dpkg-source dpkg-deb gcc make cpio xz gzip; do
    command -v "$tool" >/dev/null || die "'$tool' is missing; scripts/setup.sh installs what is needed"
done
busybox=$(command -v busybox) || die "'busybox' is missing; scripts/setup.sh installs busybox-static"
if ldd "$busybox" >/dev/null 2>&1; then
    die "$busybox is not static; install the package busybox-static"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/blkpilot-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
log="$work/log"

run() {
    if ! "$@" >>"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "failed: $*"
    fi
}

# A private view on the package archive this machine already uses, with source
# packages switched on. The machine's own configuration is not touched.
mkdir -p "$work/apt/sources.list.d" "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    if [[ ! -s $file ]] || ! grep -Eq 'debian|ubuntu' "$file"; then continue; fi
    copy="$work/apt/sources.list.d/$(basename "$file")"
    case "$file" in
        *.sources) sed -E 's/^Types:.*/Types: deb deb-src/' "$file" >"$copy" ;;
        *) sed -nE 's/^deb(-src)?[[:space:]]+(.*)/deb \2\ndeb-src \2/p' "$file" | sort -u >"$copy.list" ;;
    esac
done
cat >"$work/apt/apt.conf" <<TEXT
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/apt/sources.list.d";
Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
APT::Sandbox::User "$(id -un)";
APT::Get::Only-Source "true";
Acquire::Languages "none";
TEXT
export APT_CONFIG="$work/apt/apt.conf"

say "reading the package archive (this machine's own mirrors, about 10-40 MB)"
run apt-get update

# The package that a meta-package of kernels stands for today.
kernel_package() {
    local meta
    for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-generic linux-image-amd64; do
        apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null |
            sed -nE 's/^ *Depends: (linux-image-[0-9][^ ]*)$/\1/p' | head -n 1 | grep . && return 0
    done
    return 1
}

kernel=$(kernel_package) || die "no kernel package found (tried linux-image-cloud-amd64, linux-image-virtual, linux-image-generic)"
modules=${kernel/linux-image-/linux-modules-}
say "downloading the kernel $kernel (not installed)"
cd "$work"
run apt-get download "$kernel"
if apt-cache show "$modules" >/dev/null 2>&1; then # Ubuntu ships them apart
    run apt-get download "$modules"
fi
for package in linux-*.deb; do run dpkg-deb -x "$package" "$work/kernel"; done

rootfs="$work/rootfs"
mkdir -p "$rootfs"/{bin,dev,lib,lib64,proc,sys,tmp} "$rootfs/lib/modules" "$work/fio"

# A static fio: 3 MB, and no library in the guest.
build_fio() {
    cd "$work/fio"
    apt-get source fio >>"$log" 2>&1 || return 1
    cd "$work"/fio/fio-*/
    # Neither shared memory nor libaio in the guest: fio's threads and io_uring are enough.
    run ./configure --build-static --disable-native --disable-shm --disable-numa --disable-rdma --disable-http --disable-pmem
    run make -j"$(nproc)" fio
    install -s -m 755 fio "$rootfs/bin/fio"
}

# The distribution's fio with the libraries that it loads; nothing is installed on this machine.
borrow_fio() {
    local unpacked="$work/fio-package" packages library
    cd "$work/fio"
    mapfile -t packages < <(apt-get install --print-uris --yes --no-install-recommends fio 2>>"$log" |
        sed -nE "s/^'[^']*' ([^_ ]+)_.*/\1/p")
    if [[ ${#packages[@]} -gt 0 ]]; then run apt-get download "${packages[@]}"; fi
    mkdir -p "$unpacked"
    for package in ./*.deb; do
        if [[ -e $package ]]; then run dpkg-deb -x "$package" "$unpacked"; fi
    done
    local binary="$unpacked/usr/bin/fio"
    if [[ ! -x $binary ]]; then binary=$(command -v fio) || die "fio could not be had from the package archive"; fi
    install -m 755 "$binary" "$rootfs/bin/fio"
    install -m 755 /lib64/ld-linux-x86-64.so.2 "$rootfs/lib64/"
    # Some libraries lie one directory deeper.
    LD_LIBRARY_PATH=$(find "$unpacked" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    export LD_LIBRARY_PATH
    if ldd "$binary" | grep 'not found' >>"$log"; then die "the package fio needs libraries that were not found, see: $(grep 'not found' "$log")"; fi
    while read -r library; do
        install -m 644 "$library" "$rootfs/lib/"
    done < <(ldd "$binary" | sed -nE 's/.* => (\/[^ ]+) .*/\1/p')
    unset LD_LIBRARY_PATH
}

say "building fio from the distribution's source"
if ! build_fio; then
    say "the source of fio is not on the mirror: taking the package fio with its libraries instead"
    borrow_fio
fi

say "packing the initramfs"
cp "$busybox" "$rootfs/bin/busybox"
install -m 755 "$root/scripts/guest-init.sh" "$rootfs/init"

# Unpacks a module of the kernel; fails where the kernel has it built in, or not at all.
add_module() { # its name, as its file is called
    local file
    file=$(find "$work/kernel" -name "$1.ko*" | head -n 1)
    case "$file" in
        "") return 1 ;;
        *.xz) xz -dc "$file" >"$rootfs/lib/modules/$1.ko" ;;
        *.zst) zstd -qdc "$file" >"$rootfs/lib/modules/$1.ko" ;;
        *) cp "$file" "$rootfs/lib/modules/$1.ko" ;;
    esac
}

# The order matters: each module needs the ones before it. Those that a kernel has
# built in are not found, and not missed.
order="$rootfs/lib/modules/order"
: >"$order"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    if add_module "$module"; then echo "$module" >>"$order"; fi
done
# Tests load these themselves.
for module in loop dm-mod; do add_module "$module" || true; done

mkdir -p "$out"
rm -f "$out/inputs.sha256"
(cd "$rootfs" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -n -6) >"$out/initramfs.new"
cp "$(find "$work/kernel" -path '*boot/vmlinuz-*' | head -n 1)" "$out/vmlinuz.new"
chmod 644 "$out/vmlinuz.new" "$out/initramfs.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
mv "$out/initramfs.new" "$out/initramfs"
echo "$inputs" >"$out/inputs.sha256"
say "done: .deps/guest/vmlinuz ($kernel), .deps/guest/initramfs ($(du -h "$out/initramfs" | cut -f1))"
