# shellcheck shell=bash
# The command channel into a guest: ssh over loopback with keys that live as long as the instance.

make_keys() {
    [[ -e $LAB/run/key && -e $LAB/run/hostkey && -s $LAB/run/known_hosts ]] && return
    rm -f "$LAB/run/key" "$LAB/run/hostkey"
    ssh-keygen -q -t ed25519 -N '' -C podrail-lab -f "$LAB/run/key"
    cp "$LAB/run/key.pub" "$LAB/run/authorized_keys"
    dropbearkey -t ed25519 -f "$LAB/run/hostkey" 2>/dev/null | sed -n 's/^\(ssh-ed25519 [^ ]*\).*/podrail-lab \1/p' >"$LAB/run/known_hosts"
}

guest_ssh() {
    local node=$1
    shift
    ssh -F none -q -p "$(<"$LAB/run/node$node.port")" -i "$LAB/run/key" \
        -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o HostKeyAlias=podrail-lab -o StrictHostKeyChecking=yes \
        -o UserKnownHostsFile="$LAB/run/known_hosts" -o GlobalKnownHostsFile=/dev/null -o ConnectTimeout=20 \
        -o ControlPath="$SOCKETS/node$node" -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o LogLevel=ERROR \
        root@127.0.0.1 "$@"
}

# One connection per guest is kept for all commands: a handshake costs an emulated guest two seconds. Without it, commands
# make their own.
keep_connection() { guest_ssh "$1" -f -N -M -o ControlPersist=no </dev/null >/dev/null 2>&1 {LOCK}>&-; }

# guest NODE COMMAND...: runs COMMAND in the guest, in the same directory if it is there; stdin, stdout, stderr and
# the exit code are the command's.
guest() {
    local node=$1 tty=()
    shift
    [[ -t 0 && -t 1 ]] && tty=(-t)
    guest_ssh "$node" "${tty[@]}" -- "$(quoted /run/podrail/enter "$PWD" "$@")"
}

# The words as any POSIX shell reads them (bash's own %q is for bash only).
quoted() {
    local word
    for word in "$@"; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
}

# Waits until guest-init is through. Fails with the reason on standard output; unless that begins with FAILED, another
# boot may do better.
wait_ready() {
    local node=$1 started=$SECONDS console=$LAB/log/node$1.console limit=240 silence=90 heard=$SECONDS size=0
    # How long a boot takes is a matter of how busy this host is; one that is silent for so long hangs.
    while ((SECONDS - started < limit && SECONDS - heard < silence)); do
        if [[ $(stat -c %s "$console" 2>/dev/null || echo 0) != "$size" ]]; then
            size=$(stat -c %s "$console")
            heard=$SECONDS
        fi
        if grep -aq PODRAIL-LAB-FAILED "$console" 2>/dev/null; then
            printf 'FAILED %s\n' "$(grep -ao 'PODRAIL-LAB-FAILED .*' "$console" | head -1 | cut -d' ' -f2- | tr -d '\r')"
            return 1
        fi
        if ! node_alive "$node"; then
            printf 'ended while booting: %s\n' "$(grep -aoE 'Kernel panic.*' "$console" || tail -n 1 "$LAB/log/node$node.qemu")"
            return 1
        fi
        if grep -aq PODRAIL-LAB-AGAIN "$console" 2>/dev/null; then
            grep -ao 'PODRAIL-LAB-AGAIN .*' "$console" | head -1 | cut -d' ' -f2- | tr -d '\r'
            return 1
        fi
        if grep -aq 'guest-init: ready' "$console" 2>/dev/null; then
            keep_connection "$node" && return 0
        fi
        sleep 0.2
    done
    printf 'hangs after %s s of booting\n' "$((SECONDS - started))"
    return 1
}
