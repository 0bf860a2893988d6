#!/usr/bin/env bash
# Tailscale's own programs for the tests of the tailnet, at the version that compose.yaml names, with an ACME server and the control server
# of the tests' tailnet. Built with Go from the module tests/tailnet/go, whose go.sum pins every source.
#
#   scripts/test_tailnet.sh install    build what is missing (minutes the first time, instant after it)
#   scripts/test_tailnet.sh clean      remove what was built
#
# The tests find the programs at QMD_TEST_TAILNET_CACHE, by default the folder below. Go's own caches make a rebuild short.
set -euo pipefail

CACHE=${QMD_TEST_TAILNET_CACHE:-/var/cache/qmd-test-tailnet}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
MODULE=$ROOT/tests/tailnet/go
PROGRAMS=(tailscale.com/cmd/containerboot tailscale.com/cmd/tailscaled tailscale.com/cmd/tailscale
    github.com/letsencrypt/pebble/v2/cmd/pebble ./control ./hujson)

say() { echo "test tailnet: $*" >&2; }

# The version in the image's name, which is what users get.
image_version() { sed -n 's/.*TAILSCALE_IMAGE:-[^}]*:v\([0-9.]*\)}.*/\1/p' "$ROOT/compose.yaml" | head -1; }
module_line() { awk -v name="$1" '$1 == name { print $2; exit }' "$MODULE/go.mod"; }

need_go() {
    local needed have
    needed=$(module_line go)
    if ! command -v go > /dev/null; then
        say "Go $needed or newer is needed: install it from your distribution or go.dev/dl and put it on the PATH."
        exit 3
    fi
    have=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
    have=${have#go}
    if [ "$(printf '%s\n%s\n' "$needed" "${have%%[- ]*}" | sort -V | head -1)" != "$needed" ]; then
        say "Go $have is too old for Tailscale's programs: $needed or newer is needed."
        exit 3
    fi
}

install_programs() {
    local image pinned stamp
    image=$(image_version)
    pinned=$(awk '$1 == "tailscale.com" { print $2; exit }' "$MODULE/go.mod")
    if [ -n "$image" ] && [ "v$image" != "$pinned" ]; then
        say "compose.yaml names Tailscale v$image, tests/tailnet/go/go.mod $pinned: run \`go get tailscale.com@v$image && go mod tidy\` there."
        exit 2
    fi
    stamp=$(cd "$ROOT" && cat scripts/test_tailnet.sh tests/tailnet/go/go.* tests/tailnet/go/*/*.go | sha256sum)
    [ "$(cat "$CACHE/stamp" 2> /dev/null)" = "$stamp" ] && return 0
    need_go
    say "building Tailscale $pinned, pebble and the control server into $CACHE/bin"
    mkdir -p "$CACHE/bin"
    # Without the stamps a program calls itself 1.102.3-ERR-BuildInfo.
    (cd "$MODULE" && CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -o "$CACHE/bin/" \
        -ldflags "-s -w -X tailscale.com/version.longStamp=${pinned#v} -X tailscale.com/version.shortStamp=${pinned#v}" "${PROGRAMS[@]}")
    echo "$stamp" > "$CACHE/stamp"
}

case ${1:-} in
    install) install_programs ;;
    clean) rm -rf "$CACHE" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$HERE/$(basename "$0")"; exit 2 ;;
esac
