#!/usr/bin/env bash
# devicemapper.sh [TEST]: the driver devicemapper on the kernel's dm-thin, in a virtual
# machine with a Debian on its first disk, which is kept in $VM_CACHE. The guest's half
# is devicemapper-guest.sh, and devicemapper-steps.sh in the Debian. Then the power is cut
# $CUTS times (3) under work, each after which everything is looked at. TEST is a pattern
# for the conformance suite, or one of the functions in devicemapper-steps.sh, and keeps all
# else from being run. FULL=1 kills commands at every step instead of some, and counts what a
# thousand containers cost instead of twenty, which takes an hour or so.
set -eu -o pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
LAYERFS=$(realpath "${LAYERFS:-$(dirname "$0")/../../bin/layerfs}")
here=$(cd "$(dirname "$0")" && pwd)
CACHE=${VM_CACHE:-/var/tmp/layerfs-vm}
# Against a guest that hangs; how fast one is depends on the machine.
limit=${FULL:+21600}
limit=${limit:-3600}
start=$SECONDS

# root makes the guest's root file system: a Debian with the tools that tests run.
root() {
	local packages=attr,dmsetup,e2fsprogs,kmod,lvm2,procps,thin-provisioning-tools,udev,xfsprogs
	rootfs=$CACHE/debian-$(echo "$packages" | sha256sum | head -c 8).tar
	[ -e "$rootfs" ] && return
	mmdebstrap --quiet --variant=minbase --include="$packages" --format=tar bookworm "$rootfs.new"
	mv "$rootfs.new" "$rootfs"
}

T=$(mktemp -d /var/tmp/layerfs-devicemapper-XXXXXX)
trap 'rm -rf "$T"' EXIT
mkdir -p "$CACHE" "$T/guest" "$T/root/layerfs"
root
tar -C "$T/root" -xf "$rootfs"
cp "$LAYERFS" "$T/root/layerfs/layerfs"
cp "$here/steps.sh" "$here/devicemapper-steps.sh" "$T/root/layerfs"
(
	cd "$here/../.."
	export CGO_ENABLED=0
	go test -c -o "$T/root/layerfs/drivers.test" ./tests/drivers
	go build -tags faults -o "$T/root/layerfs/layerfs-faults" ./cmd/layerfs
	go build -o "$T/root/layerfs/containerbench" ./tests/bench/containers
)
cp "$here/devicemapper-power.sh" "$T/root/layerfs"
echo "${FULL:-}" >"$T/root/layerfs/full"
truncate -s 6G "$T/disk0"
mkfs.ext4 -q -d "$T/root" "$T/disk0"
rm -rf "$T/root"
truncate -s 1G "$T/disk1"
truncate -s 64M "$T/disk2"
cp "$here/devicemapper-guest.sh" "$T/guest/main"

# boot SCRIPT ARGUMENT: runs /layerfs/SCRIPT in the guest's Debian.
boot() {
	echo "$1" >"$T/guest/script"
	echo "$2" >"$T/guest/argument"
	VM_MEMORY=1024 VM_SECONDS=${DM_SECONDS:-$limit} "$here/run-in-vm.sh" "$T/guest" "$T/disk0" "$T/disk1" "$T/disk2"
}
boot devicemapper-steps.sh "${1:-}"
if [ -z "${1:-}" ]; then
	for ((cut = 0; cut < ${CUTS:-3}; cut++)); do
		# The guest has no last words, which run-in-vm.sh says.
		boot devicemapper-power.sh $((4 + RANDOM % 8)) >"$T/out" 2>&1 || true
		! grep -E "damaged|complains|acknowledged are" "$T/out" || exit 1
	done
	boot devicemapper-power.sh 0
fi
echo "ok: devicemapper ($((SECONDS - start)) s)"
