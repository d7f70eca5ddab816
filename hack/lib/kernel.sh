# shellcheck shell=bash
# The guest's kernel: Debian's own, unpacked beside the cache instead of installed into /boot, with an initramfs of one
# busybox and the modules that reach the root file system.

GUEST_KERNELS=$CACHE/guest-kernel

# Loaded in every guest: unpacked once, because decompressing them costs an emulated guest seconds at each boot.
GUEST_MODULES=(virtio_net igb igbvf vfio-pci vfio_iommu_type1 macvlan ipvlan 8021q dummy bridge veth br_netfilter overlay
    nf_nat xt_MASQUERADE xt_comment xt_mark xt_addrtype xt_conntrack xt_nat xt_tcpudp xt_statistic xt_multiport nf_tables
    nft_compat nft_chain_nat ip_tables iptable_nat iptable_filter vrf tun af_packet tcp_bbr sch_tbf sch_ingress cls_u32
    act_mirred ifb ip_set 9p 9pnet_virtio)
INITRAMFS_MODULES=(9p 9pnet_virtio overlay)
DISK_MODULES=(virtio_blk ext4) # loaded where the guest has a disk

# Sets KERNEL_DIR (vmlinuz, vmlinux, lib/modules/VERSION), KERNEL_VERSION and INITRAMFS; fetches the kernel the first time.
use_kernel() {
    local dir
    for dir in "$GUEST_KERNELS"/*/; do
        [[ -e $dir/complete ]] || continue
        KERNEL_DIR=${dir%/}
    done
    [[ -n ${KERNEL_DIR:-} ]] || fetch_kernel
    KERNEL_VERSION=${KERNEL_DIR##*/}
    # Several trees share the cache: each has its own.
    INITRAMFS=$KERNEL_DIR/initrd-$(cat "$REPO/hack/lab.d/initramfs-init" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-12)
    [[ -e $INITRAMFS ]] || make_initramfs
}

fetch_kernel() {
    local codename release=() package version work
    codename=$(debian_codename)
    if [[ $codename == bookworm ]]; then
        use_suite deb bookworm-backports
        release=(-o "APT::Default-Release=bookworm-backports")
    fi
    need_lists
    package=$(apt-cache "${release[@]}" depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)/\1/p' | head -1)
    [[ -n $package ]] || die "apt knows no linux-image-amd64 for $codename: run apt-get update"
    version=${package#linux-image-}
    say "fetching guest kernel $version"
    mkdir -p "$GUEST_KERNELS"
    rm -rf "$GUEST_KERNELS"/.new.*
    work=$(mktemp -d "$GUEST_KERNELS/.new.XXXXXX")
    (cd "$work" && chmod 755 . && apt_get "${release[@]}" download "$package" >"$CACHE/apt.log" 2>&1) || {
        rm -rf "$work"
        die "apt-get could not download $package: $(grep -m1 '^E:' "$CACHE/apt.log")"
    }
    dpkg-deb -x "$work"/*.deb "$work/unpacked"
    mkdir -p "$work/lib"
    mv "$work/unpacked/boot/vmlinuz-$version" "$work/vmlinuz"
    mv "$work/unpacked"/{usr/,}lib/modules "$work/lib/" 2>/dev/null || true
    rm -rf "$work/unpacked" "$work"/*.deb
    [[ -d $work/lib/modules/$version/kernel ]] || die "package $package holds no modules under lib/modules/$version"
    extract_vmlinux "$work/vmlinuz" "$work/vmlinux"
    depmod -b "$work" "$version"
    unpack_modules "$work" "$version" "${GUEST_MODULES[@]}"
    depmod -b "$work" "$version"
    touch "$work/complete"
    rm -rf "${GUEST_KERNELS:?}/$version"
    mv "$work" "$GUEST_KERNELS/$version"
    KERNEL_DIR=$GUEST_KERNELS/$version
}

# An ELF kernel boots by PVH entry without decompressing itself, which an emulated CPU does slowly.
# Where the payload is not zstd the compressed image is used as it is.
extract_vmlinux() {
    local offset
    offset=$(LC_ALL=C grep -obUaP '\x28\xb5\x2f\xfd' "$1" | head -1 | cut -d: -f1)
    [[ -n $offset ]] || return 0
    # zstd complains about the image's tail behind the payload; whether it is an ELF file is what counts.
    tail -c "+$((offset + 1))" "$1" | zstd -dcq >"$2" 2>/dev/null || true
    [[ $(head -c 4 "$2") == $'\x7fELF' ]] || rm -f "$2"
}

# module_files BASE VERSION MODULE...: paths of the modules and of what they depend on, in load order.
module_files() {
    local base=$1 version=$2 module
    shift 2
    for module in "$@"; do
        modprobe -d "$base" -S "$version" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++'
}

unpack_modules() {
    local file
    module_files "$@" | while read -r file; do
        case $file in
        *.xz) xz -d "$file" ;;
        *.zst) zstd -dq --rm "$file" ;;
        esac
    done
}

make_initramfs() {
    local root
    root=$(mktemp -d "$KERNEL_DIR/.root.XXXXXX")
    mkdir -p "$root"/{bin,modules,proc,sys,dev,host,mem,root}
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp "$REPO/hack/lab.d/initramfs-init" "$root/init"
    chmod 755 "$root/init"
    add_modules "$root/modules" order "${INITRAMFS_MODULES[@]}"
    add_modules "$root/modules" order.disk "${DISK_MODULES[@]}"
    archive "$root" >"$root.initrd"
    mv "$root.initrd" "$INITRAMFS"
    rm -rf "$root"
}

# add_modules DIR ORDER MODULE...: modules and what they depend on into DIR, their names in load order into DIR/ORDER.
add_modules() {
    local dir=$1 order=$2 file name
    shift 2
    module_files "$KERNEL_DIR" "$KERNEL_VERSION" "$@" | while read -r file; do
        name=${file##*/}
        name=${name%%.ko*}.ko
        # Busybox loads none that is compressed.
        case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -dqc "$file" ;;
        *) cat "$file" ;;
        esac >"$dir/$name"
        printf '%s\n' "$name" >>"$dir/$order"
    done
}

# archive DIR: an initramfs archive of DIR on standard output. The kernel unpacks concatenated archives in turn.
archive() { (cd "$1" && find . -mindepth 1 | cpio -o -H newc -R 0:0 --quiet); }
