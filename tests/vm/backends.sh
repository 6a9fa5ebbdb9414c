#!/usr/bin/env bash
# backends.sh: what layerfs does where the kernel lacks overlay, or FUSE too,
# and on a kernel whose overlay takes its lowers in one page of options
# (backends-guest.sh). $LAYERFS is the program.
set -eu -o pipefail
LAYERFS=$(realpath "${LAYERFS:-$(dirname "$0")/../../bin/layerfs}")
here=$(cd "$(dirname "$0")" && pwd)
start=$SECONDS

T=$(mktemp -d /var/tmp/layerfs-backends-XXXXXX)
trap 'rm -rf "$T"' EXIT
mkdir "$T/guest"
cp "$LAYERFS" "$T/guest/layerfs"
cp "$here/steps.sh" "$T/guest"
cp "$here/backends-guest.sh" "$T/guest/main"
truncate -s 64M "$T/disk"
rc=0
"$here/run-in-vm.sh" "$T/guest" "$T/disk" || rc=$?
[ "$rc" -lt 124 ] || { echo "FAILED  the guest: exit status $rc" && exit 1; }
[ "$rc" = 0 ] || { echo "FAILED: $rc" && exit 1; }
echo "ok: a backend for every kernel ($((SECONDS - start)) s)"
