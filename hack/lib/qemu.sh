# shellcheck shell=bash
# One guest is one QEMU process: its command line, its accelerator, its start and its end.
# shellcheck disable=SC2054,SC2153 # commas belong to QEMU's options; capitals are hack/lab's flags

# Sets ACCEL to the fastest accelerator on which a guest really boots here. /dev/kvm alone proves nothing: inside some
# machines it exists and no ordinary kernel comes up on it. So one is booted once, and the answer is remembered.
choose_accelerator() {
    local key answer
    ACCEL=tcg
    [[ -w /dev/kvm ]] || return 0
    key=$(printf '%s %s %s' "$(uname -r)" "$(grep -m1 'model name' /proc/cpuinfo)" "$KERNEL_VERSION" | cksum | cut -d' ' -f1)
    answer=$CACHE/kvm-$key
    if [[ ! -s $answer ]]; then
        say "probing KVM once (at most 20 s)"
        if probe_kvm; then echo kvm >"$answer"; else echo tcg >"$answer"; fi
        say "guests run on $(<"$answer")"
    fi
    ACCEL=$(<"$answer")
}

probe_kvm() {
    local dir output
    dir=$(mktemp -d)
    mkdir "$dir/lab"
    printf 'LAB_PROBE=1\n' >"$dir/lab/conf"
    { cat "$INITRAMFS" && archive "$dir"; } >"$dir.initrd"
    output=$(timeout -k 1 20 qemu-system-x86_64 -enable-kvm -cpu host -machine q35,kernel-irqchip=split -m 512M -display none -no-reboot -nodefaults \
        -kernel "$(kernel_image)" -initrd "$dir.initrd" -append "console=ttyS0 quiet panic=-1" \
        -device intel-iommu,intremap=on -serial stdio </dev/null 2>/dev/null)
    rm -rf "$dir" "$dir.initrd"
    [[ $output == *PODRAIL-LAB-PROBE-OK* ]]
}

kernel_image() {
    if [[ -e $KERNEL_DIR/vmlinux ]]; then printf '%s' "$KERNEL_DIR/vmlinux"; else printf '%s' "$KERNEL_DIR/vmlinuz"; fi
}

node_pid() { cat "$LAB/run/node$1.pid" 2>/dev/null || true; }
node_alive() { alive "$(node_pid "$1")" "$LAB/run/node$1"; }

# node_initrd NODE: the kernel's initramfs plus this guest's own settings and keys, which so stay off its command line.
node_initrd() {
    local node=$1 dir=$LAB/run/node$1.d
    mkdir -p "$dir/lab"
    cat >"$dir/lab/conf" <<EOC
LAB_PROBE=
LAB_NAME='$NAME'
LAB_NODE=$node
LAB_HOSTNAME=node$node
LAB_MACHINE_ID=$(printf '%s-%s' "$LAB" "$node" | md5sum | cut -c1-32)
LAB_OVERLAYS='var etc opt tmp root home srv mnt media'
LAB_SHARE='$SHARE'
LAB_REPO='$REPO'
LAB_MODULES='$KERNEL_DIR/lib/modules'
LAB_VFS=$VFS
LAB_HUGEPAGES=$HUGEPAGES
LAB_DISK=$DISK
LAB_CI='${CI:-}'
EOC
    cp "$LAB/run/authorized_keys" "$LAB/run/hostkey" "$dir/lab/"
    { cat "$INITRAMFS" && archive "$dir"; } >"$LAB/run/node$node.initrd"
}

# The disk of a guest: as large as it may ever want, because only what is written takes room here.
make_disk() {
    local disk=$LAB/run/node$1.disk
    rm -f "$disk"
    truncate -s 16G "$disk"
    mkfs.ext4 -q -F -m 0 "$disk"
}

# The guest's memory as QEMU options. With RAM above 4 GiB at boot, the firmware also puts the VFs' registers up there,
# and QEMU's igb VFs then never get an answer from their PF. RAM that is plugged in as a module leaves them below.
LOW_MEMORY=2688
memory_options() {
    local size=${MEMORY%[MG]}
    [[ $MEMORY == *M ]] || size=$((size * 1024))
    if ((size <= LOW_MEMORY)); then
        printf '%s\n' -m "${size}M"
    else
        # Linux takes modules in blocks of 128 MiB.
        size=$(((size - LOW_MEMORY + 127) / 128 * 128))
        printf '%s\n' -m "${LOW_MEMORY}M,slots=1,maxmem=$((LOW_MEMORY + size + 1024))M" \
            -object "memory-backend-ram,id=more,size=${size}M" -device pc-dimm,memdev=more
    fi
}

# start_node NODE PORT: boots one guest whose command channel is PORT on the host's loopback.
start_node() {
    local node=$1 port=$2 pf args=() memory iommu=intel-iommu cpu=max machine=q35
    if [[ $ACCEL == kvm ]]; then
        machine=q35,kernel-irqchip=split iommu=intel-iommu,intremap=on cpu=host
        args+=(-accel kvm)
    else
        args+=(-accel tcg,thread=multi,tb-size=512)
    fi
    mapfile -t memory < <(memory_options)
    node_initrd "$node"
    args+=(
        -name "podrail-$NAME-node$node"
        -machine "$machine" -cpu "$cpu" -smp "$CPUS" "${memory[@]}"
        -nodefaults -no-reboot -display none -serial "file:$LAB/log/node$node.console"
        -kernel "$(kernel_image)" -initrd "$LAB/run/node$node.initrd"
        -append "console=ttyS0 quiet loglevel=4 panic=-1 intel_iommu=on iommu=pt mitigations=off net.ifnames=1 biosdevname=0 no_timer_check nowatchdog memhp_default_state=online random.trust_cpu=on"
        -device "$iommu"
        -device virtio-rng-pci
        -netdev "user,id=host,ipv6=off,hostfwd=tcp:127.0.0.1:$port-:22"
        -device virtio-net-pci,netdev=host,romfile=
        -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
        -device virtio-9p-pci,fsdev=host,mount_tag=host
        -fsdev "local,id=repo,path=$REPO,security_model=none,readonly=on,multidevs=remap"
        -device virtio-9p-pci,fsdev=repo,mount_tag=repo
        -fsdev "local,id=share,path=$SHARE,security_model=none,multidevs=remap"
        -device virtio-9p-pci,fsdev=share,mount_tag=share
    )
    # Unsafe when this host loses its power, not when a guest does: what reached QEMU is in the host's cache.
    if [[ $DISK == yes ]]; then
        args+=(-drive "file=$LAB/run/node$node.disk,if=none,id=disk,format=raw,cache=unsafe" -device virtio-blk-pci,drive=disk)
    fi
    for ((pf = 0; pf < PFS; pf++)); do
        args+=(-device "pcie-root-port,id=rp$pf,slot=$((pf + 1)),chassis=$pf,bus=pcie.0")
        if ((NODES > 1)); then
            args+=(-netdev "stream,id=wire$pf,addr.type=unix,addr.path=$SOCKETS/wire$pf$(if ((node == 1)); then echo ,server=on; else echo ,server=off,reconnect-ms=500; fi)"
                -device "igb,bus=rp$pf,id=nic$pf,netdev=wire$pf,mac=52:54:00:ab:0$node:$(printf %02x "$pf"),romfile=")
        else
            args+=(-device "igb,bus=rp$pf,id=nic$pf,mac=52:54:00:ab:0$node:$(printf %02x "$pf"),romfile=")
        fi
    done
    rm -f "$LAB/log/node$node.console"
    # The child writes its own number: at no moment does a guest run that nobody can find.
    # shellcheck disable=SC2016
    setsid bash -c 'echo $$ >"$1"; shift; exec qemu-system-x86_64 "$@"' guest "$LAB/run/node$node.pid" "${args[@]}" \
        </dev/null >"$LAB/log/node$node.qemu" 2>&1 {LOCK}>&- &
}
