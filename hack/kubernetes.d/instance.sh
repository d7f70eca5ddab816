# shellcheck shell=bash
# shellcheck disable=SC2034 # the other parts read these
# Where one lab instance keeps its things, and which loopback ports it uses.

LAB=${PODRAIL_LAB:-default}
[[ $LAB =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "PODRAIL_LAB may hold letters, digits, dot, dash and underscore: '$LAB'"

INSTANCE=$CACHE/lab/$LAB
STATE=$INSTANCE/kubernetes # certificates, etcd data, pid files: all of it thrown away by `down`
LOGS=$INSTANCE/log/kubernetes
SHARE=$INSTANCE/share # the folder that the guest sees under the same path
ADMIN_KUBECONFIG=$INSTANCE/kubeconfig
GUEST_KUBECONFIG=$SHARE/kubeconfig

# Runs a verb while no other changes the same instance.
instance_locked() {
    mkdir -p "$INSTANCE" "$LOGS" "$SHARE"
    exec 9>"$INSTANCE/kubernetes.lock"
    flock --wait 300 9 || die "another hack/kubernetes has been at work on lab '$LAB' for 5 minutes; end it first"
    "$@"
}

# Prints COUNT free loopback ports. They lie below the kernel's ephemeral range, so that no outgoing connection
# takes one between this look and the server's bind; the start depends on the instance to keep instances apart.
instance_free_ports() {
    local count=$1 port
    port=$((20000 + $(cksum <<<"$LAB" | cut -d' ' -f1) % 8000))
    while ((count > 0 && port < 32000)); do
        if [[ -z $(ss --no-header --listening --tcp --numeric "sport = :$port") ]]; then
            echo "$port"
            count=$((count - 1))
        fi
        port=$((port + 1))
    done
    ((count == 0)) || die "no free TCP ports between 20000 and 32000 on this host"
}
