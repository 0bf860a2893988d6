#!/usr/bin/env bash
# A Docker engine for the tests alone, beside any engine that the machine has: own socket, own data, own containers' names.
#
#   sudo scripts/test_engine.sh install    what the engine needs, from the distribution's packages (Debian 12 or newer)
#   sudo scripts/test_engine.sh alertmanager    Alertmanager, which the tests of the metrics run
#   sudo scripts/test_engine.sh start      start it and make its base image; instant when it runs
#   sudo scripts/test_engine.sh stop       stop it; images and build cache stay, so that the next run is short
#   sudo scripts/test_engine.sh restart    as a reboot does to a stack: containers are stopped, then started by their restart policy
#   sudo scripts/test_engine.sh clean      stop it and remove its data
#
# The tests find it at QMD_TEST_DOCKER_HOST, by default the socket below, and never touch another engine: the stack's containers have
# fixed names, and a developer may have the true stack running.
set -euo pipefail

RUN=${QMD_TEST_ENGINE_RUN:-/run/qmd-test-engine}
DATA=${QMD_TEST_ENGINE_DATA:-/var/lib/qmd-test-engine}
SOCKET=$RUN/docker.sock
BUILD_CACHE=12GB # kept at most; layers of images that exist do not count twice
BASE_IMAGE=qmd-test/base:bookworm
PACKAGES=(docker.io docker-cli docker-compose docker-buildx docker-registry iptables iproute2 debootstrap)
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { echo "test engine: $*" >&2; }

as_root() {
    if [ "$(id -u)" -ne 0 ]; then
        say "this needs root: sudo $0 $1"
        exit 3
    fi
}

# The machine's own Debian mirror and suite: the first stanza of its sources.
stanza() { awk 'BEGIN { RS = "" } NR == 1' /etc/apt/sources.list.d/debian.sources | grep -v '^#'; }

# Packages of the next suite, pinned low so that nothing is taken from there unasked.
add_suite() {
    if ! command -v apt-get > /dev/null || [ ! -r /etc/apt/sources.list.d/debian.sources ]; then
        say "install Docker with its compose and buildx plugins, docker-registry and debootstrap; this script knows Debian only."
        exit 3
    fi
    stanza | sed 's/^Suites:.*/Suites: trixie/' > /etc/apt/sources.list.d/qmd-test-engine.sources
    printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' > /etc/apt/preferences.d/qmd-test-engine
    apt-get update -q
}

install_packages() {
    local missing=0 program
    for program in dockerd docker-registry debootstrap iptables ip; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" > /dev/null || missing=1
    done
    docker compose version > /dev/null 2>&1 && docker buildx version > /dev/null 2>&1 || missing=1
    [ "$missing" = 1 ] || return 0
    add_suite # Debian 12's own engine is too old for start_interval (25)
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends -t trixie "${PACKAGES[@]}"
}

# For the tests of the profile `metrics`, beside Debian's own prometheus and prometheus-node-exporter: 12's is too old for url_file (0.26).
install_alertmanager() {
    command -v prometheus-alertmanager > /dev/null && return 0
    add_suite
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends -t trixie prometheus-alertmanager
}

running() { docker --host "unix://$SOCKET" version --format '{{.Server.Version}}' > /dev/null 2>&1; }

start_engine() {
    running && return 0
    mkdir -p "$RUN" "$DATA"
    rm -f "$RUN/docker.pid" "$RUN/containerd/containerd.pid"
    # FAKE: no GPU here. Docker accepts a GPU reservation when it finds NVIDIA's runtime hook on its PATH; this one does nothing.
    printf '#!/bin/sh\ncat > /dev/null\nexit 0\n' > "$RUN/nvidia-container-runtime-hook"
    chmod 755 "$RUN/nvidia-container-runtime-hook"
    printf '{"builder": {"gc": {"enabled": true, "defaultKeepStorage": "%s"}}}\n' "$BUILD_CACHE" > "$RUN/daemon.json"
    PATH=$RUN:$PATH:/usr/sbin:/sbin setsid dockerd --config-file "$RUN/daemon.json" \
        --host "unix://$SOCKET" --data-root "$DATA" --exec-root "$RUN/exec" --pidfile "$RUN/docker.pid" \
        --bip 172.31.250.1/24 --default-address-pool base=172.31.192.0/19,size=26 \
        --insecure-registry 127.0.0.0/8 --shutdown-timeout 40 \
        < /dev/null >> "$RUN/dockerd.log" 2>&1 &
    for _ in $(seq 120); do
        running && return 0
        sleep 0.5
    done
    say "dockerd did not start; the end of $RUN/dockerd.log:"
    tail -20 "$RUN/dockerd.log" >&2
    exit 1
}

stop_engine() {
    [ -r "$RUN/docker.pid" ] || return 0
    local process
    process=$(cat "$RUN/docker.pid")
    kill "$process" 2> /dev/null || return 0
    for _ in $(seq 120); do
        kill -0 "$process" 2> /dev/null || return 0
        sleep 0.5
    done
    kill -9 "$process"
}

# No image can be pulled on a machine that reaches package mirrors only: Debian's installer makes one.
base_image() {
    docker --host "unix://$SOCKET" image inspect "$BASE_IMAGE" > /dev/null 2>&1 && return 0
    local root=$DATA/base-root mirror suite
    mirror=$(stanza | awk '$1 == "URIs:" { print $2 }')
    suite=$(stanza | awk '$1 == "Suites:" { print $2 }')
    rm -rf "$root"
    PATH=$PATH:/usr/sbin:/sbin debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" "$mirror" >&2
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | docker --host "unix://$SOCKET" import - "$BASE_IMAGE" > /dev/null
    rm -rf "$root"
}

case ${1:-} in
    install) as_root "$1"; install_packages ;;
    alertmanager) as_root "$1"; install_alertmanager ;;
    start) as_root "$1"; start_engine; base_image; say "unix://$SOCKET" ;;
    stop) as_root "$1"; stop_engine ;;
    restart) as_root "$1"; stop_engine; start_engine ;;
    clean) as_root "$1"; stop_engine; rm -rf "$DATA" "$RUN" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$HERE/$(basename "$0")"; exit 2 ;;
esac
