# shellcheck shell=bash
# Kubernetes v1.20.2 from Debian 12's source package: the last Debian source that holds kubelet and API server.

BUILD_SUITE=bookworm
BUILD_TREE=$CACHE/kubernetes/build
BUILD_PATCHES=$PARTS/patches

# Builds once per set of patches; the stamp is written last, so that a broken build starts over.
build_from_debian_source() {
    ! build_is_complete || return 0
    mkdir -p "$CACHE/kubernetes"
    # Two lab instances may come here at once.
    (
        flock 8
        ! build_is_complete || exit 0
        install_packages golang-go dpkg-dev
        use_suite deb-src "$BUILD_SUITE"
        say "building Kubernetes $BUILT_VERSION from Debian's source package: once, about 10 minutes on 2 cores; log: $CACHE/kubernetes/build.log"
        # As a job of its own: bash would not end at the first error inside the operand of `||`.
        build_run 8>&- >"$CACHE/kubernetes/build.log" 2>&1 &
        wait $! || {
            tail -n 5 "$CACHE/kubernetes/build.log" >&2
            die "the build of Kubernetes $BUILT_VERSION failed; see $CACHE/kubernetes/build.log"
        }
    ) 8>"$CACHE/kubernetes/build.lock"
}

build_is_complete() { cat "$BUILD_PATCHES"/*.patch | cmp --quiet - "$BUILT/.complete"; }

build_run() {
    local patch
    set -euxo pipefail
    rm -rf "$BUILD_TREE"
    mkdir -p "$BUILD_TREE/go/src/k8s.io" "$BUILT"
    cd "$BUILD_TREE"
    # apt checks the signature of the suite and the checksums of the files; dpkg-source checks the latter again.
    apt_get source --download-only --only-source "kubernetes/$BUILD_SUITE"
    dpkg-source --extract ./kubernetes_*.dsc go/src/k8s.io/kubernetes

    for patch in "$BUILD_PATCHES"/*.patch; do
        patch --directory go/src/k8s.io/kubernetes --batch --strip 1 --fuzz 0 <"$patch"
    done

    # GOPATH mode: with -mod=vendor, newer Go versions want to update go.mod of this tree.
    export GOPATH=$BUILD_TREE/go GOCACHE=${GOCACHE:-$BUILD_TREE/cache}
    export GO111MODULE=off CGO_ENABLED=0 GOTOOLCHAIN=local GOPROXY=off GOFLAGS=
    cd "$GOPATH/src/k8s.io/kubernetes"
    build_openapi

    local flags=-s\ -w package name
    for package in client-go/pkg/version component-base/version; do
        package=k8s.io/kubernetes/vendor/k8s.io/$package
        flags+=" -X $package.gitVersion=$BUILT_VERSION -X $package.gitMajor=1 -X $package.gitMinor=20"
        flags+=" -X $package.gitTreeState=clean"
    done
    for name in "${BINARIES[@]}"; do
        go build -trimpath -ldflags "$flags" -o "$BUILT/$name" "./cmd/$name"
    done
    cat "$BUILD_PATCHES"/*.patch >"$BUILT/.complete"
    cd "$CACHE"
    rm -rf "$BUILD_TREE"
}

# Generates pkg/generated/openapi, which upstream's make generates and the source package leaves out.
build_openapi() {
    local without='/(testdata|test|_examples|code-generator|sample-[^/]*)(/|$)'
    build_openapi_packages() {
        grep -rl --include='*.go' '+k8s:openapi-gen=' "$1" | xargs -n1 dirname | sort -u |
            grep -vE "$without" | sed "s#^$1/#$2/#"
    }
    go build -o "$BUILD_TREE/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    "$BUILD_TREE/openapi-gen" \
        --go-header-file hack/boilerplate/boilerplate.generatego.txt \
        --input-dirs "$({
            build_openapi_packages staging/src k8s.io/kubernetes/vendor
            build_openapi_packages pkg k8s.io/kubernetes/pkg
        } | paste -sd,)" \
        --output-package k8s.io/kubernetes/pkg/generated/openapi --output-file-base zz_generated.openapi \
        --report-filename "$BUILD_TREE/openapi-violations" --output-base "$GOPATH/src"
    # Upstream's own check: the generator saw exactly the packages that upstream's make shows it.
    diff "$BUILD_TREE/openapi-violations" api/api-rules/violation_exceptions.list
}
