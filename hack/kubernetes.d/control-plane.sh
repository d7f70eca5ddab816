# shellcheck shell=bash
# etcd, API server, controller-manager and scheduler on this host's loopback.

GUEST_VIEW_OF_HOST=10.0.2.2 # QEMU's user network shows the host's loopback under this address
SERVICE_RANGE=10.96.0.0/16
SERVICE_KUBERNETES=10.96.0.1
CONTROL_PLANE=(etcd kube-apiserver kube-controller-manager kube-scheduler)

# Idempotent: a healthy control plane stays, anything less is ended and made anew.
control_plane_up() {
    if control_plane_healthy; then
        say "control plane of lab '$LAB' is up"
        return
    fi
    binaries_prepare
    install_packages openssl iproute2
    control_plane_down

    local ports etcd_port api_port minor
    ports=$(instance_free_ports 3)
    { read -r etcd_port && read -r etcd_peer_port && read -r api_port; } <<<"$ports"
    minor=$(binaries_minor kube-apiserver)

    pki_create_ca
    pki_issue etcd /CN=etcd serverAuth,clientAuth IP:127.0.0.1
    pki_issue etcd-client /CN=kube-apiserver clientAuth
    pki_issue apiserver /CN=kube-apiserver serverAuth \
        "IP:127.0.0.1,IP:$GUEST_VIEW_OF_HOST,IP:$SERVICE_KUBERNETES,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    pki_issue kubelet-client /O=system:masters/CN=kube-apiserver-kubelet clientAuth
    pki_issue admin /O=system:masters/CN=admin clientAuth
    pki_issue controller-manager /CN=system:kube-controller-manager clientAuth
    pki_issue scheduler /CN=system:kube-scheduler clientAuth
    local name
    for name in admin controller-manager scheduler; do
        pki_kubeconfig "$name" "https://127.0.0.1:$api_port" "$PKI/$name.kubeconfig"
    done

    control_plane_start_etcd "$etcd_port" "$etcd_peer_port"
    control_plane_start_apiserver "$etcd_port" "$api_port"
    control_plane_start_controllers "$minor"

    cp "$PKI/admin.kubeconfig" "$ADMIN_KUBECONFIG"
    echo "$api_port" >"$STATE/api-port"
    # Pods are refused until the controller-manager has made their service account.
    process_wait kube-controller-manager 60 kubectl_admin get serviceaccount default
    pki_kubeconfig admin "https://$GUEST_VIEW_OF_HOST:$api_port" "$GUEST_KUBECONFIG"
    say "control plane $(binaries_version kube-apiserver) of lab '$LAB' is up: KUBECONFIG=$ADMIN_KUBECONFIG"
}

control_plane_start_etcd() {
    local client=https://127.0.0.1:$1 peer=https://127.0.0.1:$2
    local flags=(
        --name lab --data-dir "$STATE/etcd"
        --listen-client-urls "$client" --advertise-client-urls "$client"
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "lab=$peer"
        --cert-file "$PKI/etcd.crt" --key-file "$PKI/etcd.key" --trusted-ca-file "$PKI/ca.crt" --client-cert-auth
        --peer-cert-file "$PKI/etcd.crt" --peer-key-file "$PKI/etcd.key" --peer-trusted-ca-file "$PKI/ca.crt"
        --peer-client-cert-auth
        # A throw-away store; fsync is the slowest thing that etcd does.
        --unsafe-no-fsync
    )
    process_start etcd "$(binary etcd)" "${flags[@]}"
}

control_plane_start_apiserver() {
    local etcd_port=$1 api_port=$2
    local flags=(
        --etcd-servers "https://127.0.0.1:$etcd_port" --etcd-cafile "$PKI/ca.crt"
        --etcd-certfile "$PKI/etcd-client.crt" --etcd-keyfile "$PKI/etcd-client.key"
        --bind-address 127.0.0.1 --secure-port "$api_port"
        # Never dialled (no endpoint reconciler), but without it a host that has no default route is refused.
        --advertise-address "$GUEST_VIEW_OF_HOST" --endpoint-reconciler-type none
        --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key"
        --client-ca-file "$PKI/ca.crt"
        --kubelet-certificate-authority "$PKI/ca.crt"
        --kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key"
        --service-account-issuer https://kubernetes.default.svc
        --service-account-key-file "$PKI/service-account.pub"
        --service-account-signing-key-file "$PKI/service-account.key"
        --service-cluster-ip-range "$SERVICE_RANGE"
        --authorization-mode "Node,RBAC" --enable-admission-plugins NodeRestriction
        --allow-privileged=true --profiling=false
    )
    process_start kube-apiserver "$(binary kube-apiserver)" "${flags[@]}"
    process_wait kube-apiserver 60 "$(binary kubectl)" --kubeconfig "$PKI/admin.kubeconfig" get --raw /readyz
}

control_plane_start_controllers() {
    local minor=$1 name component
    # --secure-port=0: nobody scrapes them, so they need no port. The insecure port went away with 1.24.
    local flags=(--leader-elect=false --secure-port=0 --profiling=false)
    ((minor >= 24)) || flags+=(--port=0)
    for name in controller-manager scheduler; do
        component=("$(binary "kube-$name")" --kubeconfig "$PKI/$name.kubeconfig" "${flags[@]}")
        [[ $name == scheduler ]] || component+=(
            --root-ca-file "$PKI/ca.crt"
            --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key"
            --service-account-private-key-file "$PKI/service-account.key" --use-service-account-credentials=true
        )
        process_start "kube-$name" "${component[@]}"
    done
}

control_plane_healthy() {
    local name
    for name in "${CONTROL_PLANE[@]}"; do
        process_pid "$name" >/dev/null || return 1
    done
    [[ -r $ADMIN_KUBECONFIG && -r $GUEST_KUBECONFIG ]] || return 1
    kubectl_admin --request-timeout=5s get serviceaccount default >/dev/null 2>&1
}

control_plane_down() {
    local name
    # Clients first: they would fill their logs while the servers go.
    for name in kube-scheduler kube-controller-manager kube-apiserver etcd; do
        process_stop "$name"
    done
    rm -rf "$STATE"
    rm -f "$ADMIN_KUBECONFIG" "$GUEST_KUBECONFIG"
}
