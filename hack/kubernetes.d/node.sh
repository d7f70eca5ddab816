# shellcheck shell=bash
# The lab's guests as nodes: the host hands each one its files and starts `guest` (beside this file) in it.

NODES=$SHARE/kubernetes # one folder per node; the guest writes its logs there too
GUEST_ADDRESS=10.0.2.15 # every guest has a user network of its own, and there this address
SERVICE_DNS=10.96.0.10  # nobody answers there; kubelet wants one to write into resolv.conf

# node_up [FLAGS OF hack/lab up]: a lab that runs already is taken as it is, unless flags ask for something.
node_up() {
    local node lab_log=$LOGS/lab-up.log lab_job
    binaries_prepare
    images_prepare
    install_packages containerd runc containernetworking-plugins iptables
    # The guest boots while the control plane starts.
    if (($#)) || ! "$HACK/lab" status >/dev/null 2>&1; then
        say "booting the lab"
        "$HACK/lab" up "$@" >"$lab_log" 2>&1 9>&- &
        lab_job=$!
    fi
    control_plane_up
    [[ -z ${lab_job:-} ]] || wait "$lab_job" || die "hack/lab up failed: $(tail -n 3 "$lab_log")"
    node_forget_absent
    for node in $(node_names); do
        node_files "$node"
        say "starting containerd and kubelet on $node"
        node_exec "$node" "$PARTS/guest" start "$NODES/$node" ||
            die "node $node did not start; logs: $NODES/$node/log"
    done
    for node in $(node_names); do
        node_wait_registered "$node" 120
    done
    say "nodes have joined; they are Ready once a CNI configuration is in the guest's /etc/cni/net.d"
}

# A guest that runs on is left alone.
node_resume() {
    local node
    control_plane_healthy || die "lab '$LAB' has no Kubernetes that could go on: hack/kubernetes up"
    for node in $(node_names); do
        [[ -e $NODES/$node/node.env ]] || die "$node was no node: hack/kubernetes up"
        node_exec "$node" "$PARTS/guest" resume "$NODES/$node" ||
            die "node $node did not start; logs: $NODES/$node/log"
    done
}

# The names under which the lab's guests join, which are their host names.
node_names() { sed 's/^/node/' "$INSTANCE/run/nodes"; }

node_exec() {
    local node=$1
    shift
    "$HACK/lab" exec --node "${node#node}" -- "$@" </dev/null 9>&-
}

# A lab that was booted anew with fewer guests leaves nodes behind that can never be Ready.
node_forget_absent() {
    local node
    for node in $(kubectl_admin get nodes -o 'jsonpath={.items[*].metadata.name}'); do
        grep -qx "${node#node}" "$INSTANCE/run/nodes" && continue
        kubectl_admin delete node "$node" --wait=false >/dev/null
        rm -rf "${NODES:?}/$node"
    done
}

node_wait_registered() {
    local node=$1 deadline=$((SECONDS + $2))
    until kubectl_admin get node "$node" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || die "$node did not register in $2 s; see $NODES/$node/log/kubelet.log"
        sleep 0.3
    done
}

# What one node needs, in a folder that it sees. The key of a node is as secret as the share.
node_files() {
    local node=$1 directory=$NODES/$1
    mkdir -p "$directory"
    chmod 0700 "$NODES"
    pki_issue "node-$node" "/O=system:nodes/CN=system:node:$node" serverAuth,clientAuth "IP:$GUEST_ADDRESS,DNS:$node"
    pki_kubeconfig "node-$node" "https://$GUEST_VIEW_OF_HOST:$(<"$STATE/api-port")" "$directory/kubeconfig"
    cp "$PKI/ca.crt" "$directory/ca.crt"
    cp "$PKI/node-$node.crt" "$directory/kubelet.crt"
    cp "$PKI/node-$node.key" "$directory/kubelet.key"
    cat >"$directory/node.env" <<ENV
NODE_NAME=$node
NODE_ADDRESS=$GUEST_ADDRESS
NODE_API_ADDRESS=$GUEST_VIEW_OF_HOST:$(<"$STATE/api-port")
NODE_SERVICE_ADDRESS=$SERVICE_KUBERNETES
NODE_SERVICE_DNS=$SERVICE_DNS
NODE_AUTHORITY=$(sha256sum <"$PKI/ca.crt" | cut -c1-16)
NODE_BINARIES=$(binaries_directory)
NODE_IMAGES=$(images_archive)
KUBELET_MINOR=$(binaries_minor kubelet)
ENV
}

node_wait_ready() {
    local seconds=$1
    [[ $seconds =~ ^[0-9]+$ ]] || die "wait-ready: '$seconds' is no number of seconds"
    if ! kubectl_admin wait --for=condition=Ready node --all --timeout "${seconds}s" >/dev/null; then
        kubectl_admin get nodes -o 'jsonpath={range .items[*]}{.metadata.name}: {.status.conditions[?(@.type=="Ready")].message}{"\n"}{end}' >&2
        die "not every node of lab '$LAB' is Ready after $seconds s; kubelet's log: $NODES/<node>/log/kubelet.log"
    fi
}

node_status() {
    local name broken=0
    for name in "${CONTROL_PLANE[@]}"; do
        if process_pid "$name" >/dev/null; then
            echo "$name: running, pid $(process_pid "$name"), log $LOGS/$name.log"
        else
            echo "$name: not running"
            broken=1
        fi
    done
    ((broken == 0)) || return 1
    [[ ! -d $NODES ]] || echo "logs of the nodes: $NODES/<node>/log"
    kubectl_admin get nodes --output wide
}

# Pods go first, through the API, so that their devices come back by CNI DEL; then the nodes, then the rest.
node_down() {
    local node
    if [[ -d $NODES ]]; then
        if control_plane_healthy; then
            timeout 60 "$(binary kubectl)" --kubeconfig "$ADMIN_KUBECONFIG" delete pods --all --all-namespaces --grace-period=1 >/dev/null 2>&1 ||
                say "some pods did not go in 60 s; ending them with their node"
        fi
        for node in $(node_names 2>/dev/null); do
            node_exec "$node" timeout 60 "$PARTS/guest" stop >/dev/null 2>&1 || true
        done
        rm -rf "$NODES"
    fi
    control_plane_down
}
