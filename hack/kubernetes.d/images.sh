# shellcheck shell=bash
# The container image of the lab, without a registry: a one-layer OCI archive made of the distribution's own files,
# imported into containerd with `ctr images import`. Pods name it with imagePullPolicy: Never.
#
# Busybox (sh, ip, ping, nc ...) and dpdk-testpmd with its libraries and drivers. It bears two names, because an
# emulated guest takes seconds to import another one: kubelet's sandbox wants nothing but a program that waits.

IMAGES=$CACHE/images
IMAGE_NAMES=(localhost/podrail/pause:1 localhost/podrail/pod:1)
# Poll-mode drivers that the pods of the lab can need: the emulated VF, and what every DPDK program wants.
IMAGE_DPDK_DRIVERS=(bus_pci bus_vdev mempool_ring net_e1000 net_null net_ring)

# Makes the archive once per set of package versions.
images_prepare() {
    local archive
    install_packages busybox-static jq dpdk-dev
    mkdir -p "$IMAGES"
    (
        flock 8
        archive=$(images_archive)
        [[ ! -s $archive ]] || exit 0
        say "making the container image ${IMAGE_NAMES[*]}"
        rm -f "$IMAGES"/*.tar
        images_build "$archive"
    ) 8>"$IMAGES/lock"
}

# The archive's path; its name changes with everything that goes into it.
images_archive() {
    local key
    key=$({
        cat "$PARTS/images.sh"
        dpkg-query --show 'busybox-static' 'libc6' 'librte-*' 'dpdk*' 2>/dev/null
    } | sha256sum | cut -c1-12)
    echo "$IMAGES/pod-$key.tar"
}

images_build() (
    archive=$1
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$work'" EXIT
    umask 022
    mkdir "$work/root"
    images_root_base "$work/root"
    images_root_dpdk "$work/root"
    images_pack "$work/root" "$work/layout"
    tar --create --file "$archive.new" --directory "$work/layout" .
    mv "$archive.new" "$archive"
)

# Busybox with all its names, and `rest`: the default command, which reaps children and obeys SIGTERM.
images_root_base() {
    local root=$1 applet
    mkdir -p "$root"/{dev,etc,proc,run,sys,tmp,root,usr/bin,usr/lib,usr/lib64,var}
    chmod 1777 "$root/tmp"
    ln -s ../run "$root/var/run"
    for applet in bin lib lib64; do ln -s "usr/$applet" "$root/$applet"; done
    ln -s usr/bin "$root/sbin"
    cp --dereference /bin/busybox "$root/usr/bin/busybox"
    for applet in $(busybox --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/usr/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    printf '#!/bin/sh\ntrap "exit 0" TERM INT\nwhile :; do sleep 3600 & wait $!; done\n' >"$root/usr/bin/rest"
    chmod 0755 "$root/usr/bin/rest"
}

# dpdk-testpmd, the drivers it loads at run time, and every library that either of them is linked to.
images_root_dpdk() {
    local root=$1 testpmd eal drivers driver files=()
    testpmd=$(command -v dpdk-testpmd)
    eal=$(ldd "$testpmd" | awk '$1 ~ /^librte_eal\.so/ {print $3}')
    drivers=$(compgen -G "$(dirname "$(realpath "$eal")")/dpdk/pmds-*") || die "no DPDK driver directory beside $eal"
    for driver in "${IMAGE_DPDK_DRIVERS[@]}"; do
        files+=("$drivers/librte_$driver.so"*)
    done
    mapfile -t -O "${#files[@]}" files < <(
        ldd "$testpmd" "${files[@]}" | grep -o '/[^ ]*\.so[^ :]*' | sort -u
    )
    for driver in "$testpmd" "${files[@]}"; do
        images_copy "$driver" "$root"
    done
    # The pods have no ld.so.cache: name the directories of the libraries outright.
    printf '%s\n' "${files[@]}" | xargs -n1 dirname | sort -u >"$root/etc/ld.so.conf"
    ldconfig -r "$root"
}

# images_copy FILE ROOT: under its own path on the merged /usr of the image; a link comes with its target.
images_copy() {
    local path=$1 root=$2
    [[ $path == /usr/* ]] || path=/usr$path
    mkdir -p "$root$(dirname "$path")"
    cp --no-dereference --preserve=mode "$1" "$root$path"
    [[ ! -L $1 ]] || images_copy "$(cd "$(dirname "$1")" && realpath --no-symlinks "$(readlink "$1")")" "$root"
}

# images_pack ROOT LAYOUT: an OCI image layout with one uncompressed layer (the guest is emulated:
# unpacking costs more than reading).
images_pack() {
    local root=$1 layout=$2 architecture layer config manifest
    architecture=$(dpkg --print-architecture)
    mkdir -p "$layout/blobs/sha256"
    tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory "$root" --file "$layout/layer" .
    layer=$(images_blob "$layout" "$layout/layer")
    jq --null-input --arg arch "$architecture" --arg layer "sha256:$layer" '{
        architecture: $arch, os: "linux",
        config: {Env: ["PATH=/usr/bin"], Cmd: ["/usr/bin/rest"]},
        rootfs: {type: "layers", diff_ids: [$layer]}
    }' >"$layout/config"
    config=$(images_blob "$layout" "$layout/config")
    jq --null-input --argjson config "$(images_descriptor "$layout" "$config" image.config.v1+json)" \
        --argjson layer "$(images_descriptor "$layout" "$layer" image.layer.v1.tar)" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: $config, layers: [$layer]
    }' >"$layout/manifest"
    manifest=$(images_blob "$layout" "$layout/manifest")
    jq --null-input --argjson manifest "$(images_descriptor "$layout" "$manifest" image.manifest.v1+json)" '{
        schemaVersion: 2,
        manifests: [$ARGS.positional[] as $name | $manifest + {annotations: {"io.containerd.image.name": $name}}]
    }' --args "${IMAGE_NAMES[@]}" >"$layout/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
}

# Moves a file among the blobs and prints its digest.
images_blob() {
    local digest
    digest=$(sha256sum "$2" | cut -d' ' -f1)
    mv "$2" "$1/blobs/sha256/$digest"
    echo "$digest"
}

images_descriptor() {
    jq --null-input --arg type "application/vnd.oci.$3" --arg digest "sha256:$2" \
        --argjson size "$(stat --format %s "$1/blobs/sha256/$2")" '{mediaType: $type, digest: $digest, size: $size}'
}
