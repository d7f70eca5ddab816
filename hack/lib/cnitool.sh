# shellcheck shell=bash
# cnitool, the reference runtime on a command line, for tests: libcni finds, calls and remembers as container runtimes do.
# Debian packages the library only, so the program is built from its source package.

CNITOOL_SUITE=bookworm
CNITOOL_BUILD=$CACHE/cnitool
CNITOOL=$CNITOOL_BUILD/bin/cnitool # where tests look for it

# Builds once; seconds, but for the Go compiler's packages.
build_cnitool() {
    [[ ! -x $CNITOOL ]] || return 0
    mkdir -p "$CNITOOL_BUILD/bin"
    # Two runs may come here at once.
    (
        flock 8
        [[ ! -x $CNITOOL ]] || exit 0
        install_packages golang-go dpkg-dev
        use_suite deb-src "$CNITOOL_SUITE"
        say "building cnitool from Debian's source package; log: $CNITOOL_BUILD/build.log"
        # As a job of its own: bash would not end at the first error inside the operand of `||`.
        compile_cnitool 8>&- >"$CNITOOL_BUILD/build.log" 2>&1 &
        wait $! || die "the build of cnitool failed; see $CNITOOL_BUILD/build.log"
    ) 8>"$CNITOOL_BUILD/build.lock"
}

compile_cnitool() {
    local organization=$CNITOOL_BUILD/go/src/github.com/containernetworking
    set -euxo pipefail
    rm -rf "$CNITOOL_BUILD/go"
    mkdir -p "$organization"
    cd "$CNITOOL_BUILD"
    # apt checks the signature of the suite and the checksums of the files; dpkg-source checks the latter again.
    apt_get source --download-only --only-source "golang-github-appc-cni/$CNITOOL_SUITE"
    dpkg-source --extract ./golang-github-appc-cni_*.dsc "$organization/cni"
    cd "$organization/cni"
    GOPATH=$CNITOOL_BUILD/go GOCACHE=$CNITOOL_BUILD/go/cache GO111MODULE=off CGO_ENABLED=0 GOTOOLCHAIN=local GOPROXY=off GOFLAGS='' \
        go build -trimpath -o "$CNITOOL.new" ./cnitool
    mv "$CNITOOL.new" "$CNITOOL"
    rm -rf "$CNITOOL_BUILD/go"
}
