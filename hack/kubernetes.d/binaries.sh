# shellcheck shell=bash
# The Kubernetes binaries in use: those of KUBEBUILDER_ASSETS, or v1.20.2 built here.

BUILT_VERSION=v1.20.2
BUILT=$CACHE/kubernetes/$BUILT_VERSION
BINARIES=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)

# Makes the binaries available; cheap when they are.
binaries_prepare() {
    local name directory
    if [[ -n ${KUBEBUILDER_ASSETS:-} ]]; then
        for name in "${BINARIES[@]}" etcd; do
            [[ -x $KUBEBUILDER_ASSETS/$name ]] ||
                die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no executable '$name'; it must hold ${BINARIES[*]} and etcd of one version"
        done
    else
        build_from_debian_source
        install_packages etcd-server
    fi
    directory=$(binaries_directory)
    say "Kubernetes $(binaries_version kubelet) in $directory"
}

binaries_directory() { (cd "${KUBEBUILDER_ASSETS:-$BUILT}" 2>/dev/null && pwd) || echo "$BUILT"; }

# binary NAME: its absolute path. etcd comes from the distribution unless the assets bring their own.
binary() {
    local path
    path=$(binaries_directory)/$1
    [[ -x $path ]] || path=$(command -v "$1") || die "no '$1' found; run 'hack/kubernetes build'"
    echo "$path"
}

# binaries_version NAME: as in v1.20.2.
binaries_version() { "$(binary "$1")" --version | grep -o 'v[0-9.]*' | head -n 1; }

# binaries_minor NAME: 20 for v1.20.2. Flags come and go with it.
binaries_minor() {
    local version
    version=$(binaries_version "$1")
    [[ $version =~ ^v1\.([0-9]+) ]] || die "$(binary "$1") --version says '$version', which is no Kubernetes 1.x"
    echo "${BASH_REMATCH[1]}"
}

kubectl_admin() {
    [[ -r $ADMIN_KUBECONFIG ]] || die "lab '$LAB' has no Kubernetes; run 'hack/kubernetes up'"
    "$(binary kubectl)" --kubeconfig "$ADMIN_KUBECONFIG" "$@"
}
